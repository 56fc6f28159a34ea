"""What a run's log says about it, in plain words: the sentences above the curves of a report.

The rules are those of docs/report.md; each is a function of the records of ``metrics.jsonl``.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ssl_core.evaluate import collapse

# A loss that has not come this far from its level by chance, relative to that level, has learned nothing.
_ABOVE_CHANCE = 0.01
_WAITING = 0.2  # of the time, from which on data are what the run lacks
# In the last quarter of a run: points of kNN, or else part of the whole fall of the loss.
_KNN_GAIN, _LOSS_GAIN = 0.01, 0.1
_LEAST_RECORDS = 8


class Verdict(NamedTuple):
    """A judgment of a run.

    Attributes:
        kind: ``healthy``, ``collapsed``, ``at chance``, ``starved of data``, ``still improving`` or ``too short``.
        text: figures that it rests on, in a sentence.
        remedy: change that helps; empty where none is needed.
    """

    kind: str
    text: str
    remedy: str = ""


def verdicts(records: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """All judgments of a run, the most serious first; ``healthy`` stands alone or beside ``still improving``.

    Args:
        records: records of the run's log, in order.

    Example:
        >>> records = [{"step": n, "loss": 1 / n, "data_wait": 0.5} for n in range(1, 21)]
        >>> [verdict.kind for verdict in verdicts(records)]
        ['starved of data']
    """
    steps = [record for record in records if "loss" in record]
    if len(steps) < _LEAST_RECORDS:
        return [
            Verdict(
                "too short",
                f"The log has {len(steps)} records of the loss; no judgment is made of fewer than {_LEAST_RECORDS}.",
                "Train longer, or log more often: --train.log_every.",
            )
        ]
    found = [verdict for judge in (_collapsed, _at_chance) if (verdict := judge(records, steps))]
    found += [verdict for verdict in [_starved(steps)] if verdict]
    improving = _improving(records, steps)
    if not found:
        last = steps[-1]
        level = f", where chance is {last['chance_loss']:.2f}" if "chance_loss" in last else ""
        found.append(Verdict("healthy", f"The loss ends at {_mean(steps[-len(steps) // 10 :]):.2f}{level}."))
    return [*found, *([improving] if improving and found[0].kind not in ("collapsed", "at chance") else [])]


def _collapsed(records: Sequence[Mapping[str, Any]], steps: Sequence[Mapping[str, Any]]) -> Verdict | None:
    latest = {name: float(value) for record in records for name, value in record.items()}
    figures = collapse(latest)
    if figures is None:
        return None
    return Verdict(
        "collapsed",
        f"All images are mapped to nearly the same embedding: {figures}.",
        "Lower --optim.lr, warm it up (--optim.warmup_epochs 10), and look at the views: they must differ from "
        "image to image.",
    )


def _at_chance(records: Sequence[Mapping[str, Any]], steps: Sequence[Mapping[str, Any]]) -> Verdict | None:
    if "chance_loss" not in steps[-1]:
        return None
    chance, loss = steps[-1]["chance_loss"], _mean(steps[-max(1, len(steps) // 10) :])
    if loss < (1 - _ABOVE_CHANCE) * chance:
        return None
    return Verdict(
        "at chance",
        f"The loss ends at {loss:.2f}, and {chance:.2f} is what guessing gives: the encoder cannot tell images apart.",
        "Try a third of --optim.lr and three times as much; weaken the views; train longer.",
    )


def _starved(steps: Sequence[Mapping[str, Any]]) -> Verdict | None:
    wait = statistics.median(step["data_wait"] for step in steps[len(steps) // 2 :])
    if wait < _WAITING:
        return None
    return Verdict(
        "starved of data",
        f"Training waited for images for {100 * wait:.0f} % of the time.",
        "Raise --data.workers, or --data.memory_gib so that images stay decoded in memory; on a GPU take "
        "--data.renderer device.",
    )


def _improving(records: Sequence[Mapping[str, Any]], steps: Sequence[Mapping[str, Any]]) -> Verdict | None:
    longer = "Train longer: --train.epochs or --budget."
    knn = [(record["step"], record["knn_top1"]) for record in records if "knn_top1" in record]
    if len(knn) >= 3:
        at = 0.75 * steps[-1]["step"]
        before = [value for step, value in knn if step <= at]
        gain = knn[-1][1] - (before[-1] if before else knn[0][1])
        text = f"kNN top-1 rose by {100 * gain:.1f} points in the last quarter of the run."
        return Verdict("still improving", text, longer) if gain >= _KNN_GAIN else None
    quarter = len(steps) // 4
    parts = [steps[start : start + quarter] for start in range(len(steps) % quarter, len(steps), quarter)]
    means = [_mean(part) for part in parts]
    fall, whole = means[-2] - means[-1], max(means) - means[-1]
    values = [step["loss"] for step in parts[-1]]
    noise = 2 * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    if whole <= 0 or fall < _LOSS_GAIN * whole or fall < noise:
        return None
    text = f"The loss fell by {fall:.2f} in the last quarter of the run, {100 * fall / whole:.0f} % of its whole fall."
    return Verdict("still improving", text, longer)


def _mean(steps: Sequence[Mapping[str, Any]]) -> float:
    return statistics.fmean(step["loss"] for step in steps)
