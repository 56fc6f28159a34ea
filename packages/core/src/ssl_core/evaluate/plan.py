"""Plan and results of an evaluation by a named protocol: what it is about to do, and how its trials came out.

``--dry_run`` prints the plan and stops; the result's JSON repeats it, so that no number stands without its protocol.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar, cast

P = TypeVar("P")  # a frozen dataclass, whose field ``source`` says whose the values are


def choose_protocol(protocols: Mapping[str, P], name: str, **asked: Any) -> tuple[P, list[str]]:
    """A protocol with some of its values replaced, and the names of those that differ from its own.

    Args:
        protocols: frozen dataclasses of values, by name.
        name: name of one of the protocols.
        asked: values in place of the protocol's own, by option; None keeps its own.

    Raises:
        ValueError: if there is no such protocol, or it has no such option: no field of that name, or None in it.

    Example:
        >>> from ssl_core.evaluate import PROTOCOLS
        >>> protocol, changed = choose_protocol(PROTOCOLS, "moco", epochs=100, lr=3.0, batch_size=None)
        >>> protocol.lr, changed
        (3.0, ['lr'])
    """
    if name not in protocols:
        raise ValueError(f"there is no protocol {name!r}; choose one of {', '.join(protocols)}")
    protocol = protocols[name]
    given = {option: value for option, value in asked.items() if value is not None}
    for option, value in given.items():
        if getattr(protocol, option, None) is None:
            others = [other for other in protocols if getattr(protocols[other], option, None) is not None]
            remedy = f"; protocols that do: {', '.join(others)}" if others else ""
            raise ValueError(f"protocol {name} has no {option} to set to {value}{remedy}")
    changed = [option for option, value in given.items() if value != getattr(protocol, option)]
    chosen: P = replace(cast(Any, protocol), **given)
    return chosen, sorted(changed)


@dataclass(frozen=True)
class Plan:
    """The plan of an evaluation, whose text the command prints first.

    Attributes:
        name: name of the protocol.
        protocol: frozen dataclass of the protocol's values, with the ones that replace its own.
        changed: names of the values that differ from the protocol's.
        text: protocol in words, from ``protocol NAME: SOURCE`` on.
        counts: number of images in each split of each set.
        selection: choice of the reported number: by the end alone, by the test images, or by others held out.
        cost: cost of the evaluation in words.
        precision: number format of the encoder, where it can be chosen.

    Example:
        >>> from ssl_core.evaluate import PROTOCOLS
        >>> counts, cost = {"digits": {"train": 1397, "test": 800}}, "9 forward passes"
        >>> print(Plan("moco", PROTOCOLS["moco"], ["lr"], "protocol moco: ...", counts, "last", cost, "float32"))
        protocol moco: ...
          precision: float32
          changed: lr
        digits: train 1,397, test 800 images
        selection: last
        cost: 9 forward passes
    """

    name: str
    protocol: Any
    changed: Sequence[str]
    text: str
    counts: Mapping[str, Mapping[str, int]]
    selection: str
    cost: str
    precision: str | None = None

    def __str__(self) -> str:
        more = {"precision": self.precision, "changed": ", ".join(self.changed)}
        lines = [f"  {name}: {value}" for name, value in more.items() if value]
        counted = (
            f"{name}: {', '.join(f'{split} {count:,}' for split, count in splits.items())} images"
            for name, splits in self.counts.items()
        )
        return "\n".join([self.text, *lines, *counted, f"selection: {self.selection}", f"cost: {self.cost}"])

    def settings(self) -> dict[str, Any]:
        """The plan in the result's JSON."""
        return {
            "protocol": {"name": self.name, **asdict(self.protocol)},
            "changed": list(self.changed),
            "splits": {name: dict(splits) for name, splits in self.counts.items()},
            "selection": self.selection,
        }


def trials_result(values: Sequence[float]) -> dict[str, Any]:
    """The scores of some trials, their mean, and of two or more the sample standard deviation.

    Example:
        >>> trials_result([0.25, 0.75])
        {'trials': [0.25, 0.75], 'mean': 0.5, 'std': 0.3535533905932738}
        >>> trials_result([0.25])
        {'trials': [0.25], 'mean': 0.25}
    """
    spread = {"std": statistics.stdev(values)} if len(values) > 1 else {}
    return {"trials": list(values), "mean": statistics.fmean(values), **spread}


def summed_up(outcomes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The numbers of one trial; of several the means of fractions, ``trials`` with all, and the spread of ``last``.

    Example:
        >>> summed_up([{"last": 0.25, "best_epoch": 3}])
        {'last': 0.25, 'best_epoch': 3}
        >>> summed_up([{"last": 0.25, "best_epoch": 3}, {"last": 0.75, "best_epoch": 1}])
        {'last': 0.5, 'mean': 0.5, 'std': 0.3535533905932738, 'trials': {'last': [0.25, 0.75], 'best_epoch': [3, 1]}}
    """
    if len(outcomes) == 1:
        return dict(outcomes[0])
    numbers = {name: [outcome[name] for outcome in outcomes] for name in outcomes[0]}
    means = {name: statistics.fmean(values) for name, values in numbers.items() if isinstance(values[0], float)}
    return means | {"mean": means["last"], "std": statistics.stdev(numbers["last"]), "trials": numbers}


def trials_text(values: Sequence[float]) -> str:
    """Scores of some trials in percent: their mean, and of two or more the sample standard deviation.

    Example:
        >>> trials_text([0.25, 0.75]), trials_text([0.25])
        ('50.00 std 35.36', '25.00')
    """
    mean = f"{100 * statistics.fmean(values):.2f}"
    return f"{mean} std {100 * statistics.stdev(values):.2f}" if len(values) > 1 else mean
