"""Configuration: frozen dataclasses read from a recipe or a YAML file, with overrides on the command line.

``--config NAME_OR_FILE`` reads a shipped recipe or a file, ``--node.key value`` overrides, ``--print_config`` shows
the result, ``--resume RUN`` continues a run directory, ``--device`` is short for ``--train.device``.
"""

import dataclasses
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentParser

from ssl_core.recipes import recipe_path

Config = TypeVar("Config")

# Options that people expect without their node.
_SHORT = {"--device": "--train.device"}
_OPTION = re.compile(r"--?[A-Za-z]")  # and not a negative number

# Keys that cannot change the numbers of a run, so that a resumed run may differ in them (`data.memory_gib` can: a
# set held in memory leaves broken images out, another replaces them). `train.device` and `data.renderer` say where
# numbers are computed: another place rounds otherwise, and a run that moves has to be able to change them.
# `train.epochs` is not among them: every schedule here ends at the last step, so more epochs would be another run.
FREE_ON_RESUME = (
    "out",
    "data.workers",
    "data.renderer",
    "data.root",
    "train.device",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_every",
    "train.stop_on_collapse",
    "train.tensorboard",
    "evaluate",
)

# Keys before checkpoints of format 3, and what recipes have in their place.
_EARLIER = {f"method.queue_{name}": f"queue.{name} inside method" for name in ("length", "initial", "dtype")}
_EARLIER |= {
    f"method.{name}": f"momentum.{name} inside method" for name in ("shuffle", "batch_norm_splits", "split_online")
}
_EARLIER |= {"method.momentum": "momentum.value inside method"}
_EARLIER |= {"method.momentum_schedule": "momentum.schedule inside method"}
_EARLIER |= {f"method.{name}": f"{name} beside method" for name in ("projector", "predictor")}
_EARLIER |= {"method.predictor_dim": "predictor beside method"}


def parse_config(
    config_class: type[Config], arguments: Sequence[str] | None, *, prog: str, description: str, recipes: Path
) -> Config:
    """The configuration that a command line asks for.

    Args:
        config_class: a frozen dataclass, usually of further dataclasses.
        arguments: the command line without the program's name; None reads ``sys.argv``.
        prog: the command's name, for messages.
        description: the command's help text.
        recipes: the folder of the shipped recipes, which ``--config NAME`` looks up.

    Raises:
        SystemExit: on unknown keys or wrong types (the message names the key), and after ``--help`` and
            ``--print_config``.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = ArgumentParser(prog=prog, description=description, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="a recipe's name, a YAML file, or: list")
    parser.add_argument("--resume", help="a run directory to continue; its own config.yaml is read")
    parser.add_class_arguments(config_class)
    try:
        arguments = _expand(arguments, recipes)
        _refuse_earlier(arguments, parser)
        _refuse_deep(arguments, parser)
    except (ValueError, yaml.YAMLError) as error:
        parser.error(str(error))
    namespace = parser.parse_args(arguments)
    del namespace["config"], namespace["resume"]
    try:
        return config_class(**vars(parser.instantiate(namespace)))
    except ValueError as error:  # a dataclass refused a value
        parser.error(str(error))


def _expand(arguments: list[str], recipes: Path) -> list[str]:
    """Arguments as ``--option=value``, with recipes found, runs to resume opened, and several values made a list.

    Several values stand behind one option when the shell has expanded a pattern: ``--data.source shards/*.parquet``.
    """
    expanded: list[str] = []
    position = 0
    while position < len(arguments):
        option, has_value, value = arguments[position].partition("=")
        option = _SHORT.get(option, option)
        position += 1
        values = [value] if has_value else []
        while position < len(arguments) and not has_value and not _OPTION.match(arguments[position]):
            values.append(arguments[position])
            position += 1
        if option == "--views":
            # Else an entry takes what it does not say from the recipe's entry at the same place.
            expanded.append("--views=[]")
        if option in ("--config", "--resume"):
            if len(values) != 1:
                raise ValueError(f"{option} needs one value, got {values}")
            if option == "--resume":
                expanded += _resume_arguments(Path(values[0]))
            else:
                expanded.append(f"--config={recipe_path(values[0], recipes)}")
        elif len(values) > 1:
            expanded.append(f"{option}={json.dumps(values)}")
        else:
            expanded.append("=".join([option, *values]))
    return expanded


def _refuse_earlier(arguments: list[str], parser: ArgumentParser) -> None:
    """Refuse what a configuration of an earlier version says: nothing converts it."""
    known = {key for key, _ in flatten(parser.get_defaults().as_dict())}
    for argument in arguments:
        option, _, value = argument.partition("=")
        where, prefix = "", option.removeprefix("--")
        if option == "--config":
            content = yaml.safe_load(Path(value).read_text())
            where, prefix = f"{value}: ", ""
        else:
            content = yaml.safe_load(value) if value.startswith("{") else None
        keys = [prefix]
        if isinstance(content, Mapping):
            keys = [key for key, _ in flatten(content, f"{prefix}." if prefix else "")]
        for key in keys:
            old = ".".join(key.split(".")[:2])
            if old in _EARLIER and not {key, old} & known and (key == old or old != "method.momentum"):
                raise ValueError(
                    f"{where}{key} is from an earlier version, whose configurations and checkpoints this one does not "
                    f"read; recipes have {_EARLIER[old]} in its place"
                )


def _refuse_deep(arguments: list[str], parser: ArgumentParser) -> None:
    """Refuse an option deep inside a free mapping: it would silently replace all that stands beside it."""
    mappings = [action.dest for action in parser._actions if hasattr(action, "_typehint")]
    for argument in arguments:
        name = argument.partition("=")[0].removeprefix("--")
        for mapping in mappings:
            if name.startswith(f"{mapping}.") and name.count(".") > mapping.count(".") + 1:
                raise ValueError(f"--{name} is too deep; give the whole node, as --{mapping} '{{...}}'")


def _resume_arguments(run: Path) -> list[str]:
    missing = [name for name in ("config.yaml", "checkpoints/last.pt") if not (run / name).is_file()]
    if missing:
        raise ValueError(f"--resume {run}: not a run directory with a checkpoint ({', '.join(missing)} missing)")
    return [f"--config={run / 'config.yaml'}", f"--out={run}"]


def refuse_changed(settings: Any, names: Sequence[str], when: str) -> None:
    """Refuse settings that have no effect: those named must have their default values.

    Args:
        settings: a dataclass, whose nodes may be dataclasses too.
        names: fields without effect.
        when: condition that takes their effect, such as "with framework simclr".

    Raises:
        ValueError: at the first that was changed, with its value and its default.

    Example:
        >>> @dataclasses.dataclass
        ... class Settings:
        ...     rate: float = 0.1
        >>> refuse_changed(Settings(0.2), ["rate"], "without training")
        Traceback (most recent call last):
        ValueError: rate 0.2 has no effect without training; leave it at 0.1
    """
    for field in dataclasses.fields(settings):
        if field.name not in names:
            continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        values, defaults = (flatten({field.name: _plain(value)}) for value in (getattr(settings, field.name), default))
        for (key, value), (_, expected) in zip(values, defaults, strict=True):
            if value != expected:
                expected = "null" if expected is None else expected
                raise ValueError(f"{key} {value} has no effect {when}; leave it at {expected}")


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as nested plain values: what ``config.yaml`` and checkpoints hold."""
    return {name: _plain(value) for name, value in vars(config).items()}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def save_config(config: Any, path: Path) -> None:
    """Write a configuration that ``--config`` reads back."""
    path.write_text(yaml.safe_dump(to_dict(config), sort_keys=False))


def config_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lines ``key: old -> new`` for every value that differs and could change a resumed run's numbers.

    Example:
        >>> config_difference({"optim": {"lr": 0.1}, "out": "a"}, {"optim": {"lr": 0.2}, "out": "b"})
        ['optim.lr: 0.1 -> 0.2']
    """
    flat_old, flat_new = dict(flatten(old)), dict(flatten(new))
    absent = "(absent)"
    return [
        f"{key}: {flat_old.get(key, absent)} -> {flat_new.get(key, absent)}"
        for key in sorted(flat_old.keys() | flat_new.keys())
        if flat_old.get(key, absent) != flat_new.get(key, absent)
        and not any(key == free or key.startswith(free + ".") for free in FREE_ON_RESUME)
    ]


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of each leaf of nested mappings."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
