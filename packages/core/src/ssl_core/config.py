"""Configuration: frozen dataclasses read from a recipe or a YAML file, with overrides on the command line.

``--config NAME_OR_FILE`` reads a shipped recipe or a file, ``--node.key value`` overrides, ``--print_config`` shows
the result, ``--resume RUN`` continues a run directory (with ``--out RUN`` it begins one that has no checkpoint yet),
``--device`` is short for ``--train.device``.
"""

import copy
import dataclasses
import difflib
import functools
import json
import logging
import operator
import re
import sys
from argparse import ArgumentError
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args

import yaml
from jsonargparse import ArgumentParser

from ssl_core.files import write_atomically
from ssl_core.folder import LAST, named_run
from ssl_core.given import is_given
from ssl_core.recipes import recipe_path

logger = logging.getLogger(__name__)

Config = TypeVar("Config")

_NODES = (".yaml", ".yml")  # files that hold a node of options

# Options that people expect without their node.
_SHORT = {"--device": "--train.device"}
_OPTION = re.compile(r"--?[A-Za-z]")  # and not a negative number

# Keys that cannot change the numbers of a run, so that a resumed run may differ in them (`data.memory_gib` can: a
# set held in memory leaves broken images out, another replaces them). `train.device` and `data.renderer` say where
# numbers are computed: another place rounds otherwise, and a run that moves has to be able to change them.
# `train.epochs` is not among them: every schedule here ends at the last step, so more epochs would be another run.
# The images themselves are compared beside these: `data.source` and `data.root` say where they lie now.
FREE_ON_RESUME = (
    "out",
    "resume",
    "data.source",
    "data.test_source",
    "data.changed",
    "data.workers",
    "data.renderer",
    "data.root",
    "data.cache",
    "data.local_cache",
    "data.local_cache_size",
    "train.device",
    "train.timeout",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_every",
    "train.stop_on_collapse",
    "train.processes_changed",
    "train.tensorboard",
    "evaluate",
)
# Wherever a method keeps its queue: a checkpoint holds all rows, and shards give the same losses within rounding.
FREE_IN_ANY_NODE = (".queue.sharded",)

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
    """The configuration that a command line asks for; for images without a recipe, that of the recipe ``auto``.

    Args:
        config_class: frozen dataclass, usually of further dataclasses.
        arguments: command line without the program's name; None reads ``sys.argv``.
        prog: name of the command, for messages.
        description: help text of the command.
        recipes: folder of the shipped recipes, in which ``--config NAME`` is looked up.

    Raises:
        SystemExit: on unknown keys or wrong types (the message names the key), and after ``--help`` and
            ``--print_config``.
    """
    arguments = _without_a_run_to_come(list(sys.argv[1:] if arguments is None else arguments))
    if (recipes / "auto.yaml").is_file() and _needs_recipe(arguments):
        arguments = ["--config=auto", *arguments]
    usage = f"{prog} --data.source IMAGES [--budget 10m] [options]\n       {prog} --config RECIPE [options]"
    parser = ArgumentParser(prog=prog, usage=usage, description=description, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", action="config", help="a recipe's name, a YAML file, or: list; other options win")
    parser.add_class_arguments(config_class)
    try:
        arguments = _expand(arguments, recipes)
        _check(arguments, parser)
        namespace = parser.parse_args(arguments)
        del namespace["config"]
        return config_class(**vars(parser.instantiate(namespace)))
    except (ArgumentError, ValueError, OSError) as error:
        raise refused_arguments(prog, error) from error


def refused_arguments(prog: str, error: Exception) -> SystemExit:
    """Say in one line why a command line is refused, without the usage, which is longer than a screen.

    Args:
        prog: command whose ``--help`` lists the options.
        error: error that the command's parser raised.
    """
    text = " ".join(str(error).split())
    expected = dict.fromkeys(
        re.findall(r"Expected (?:an? )?(?:typing\.Literal\[(.+?)\]|<class '(int|float|bool|list)'>)", text)
    )
    if expected and (given := re.match(r'Parser key "(.+?)": .* value: (.+)', text)):
        kinds = (f"one of {names.replace(chr(39), '')}" if names else kind for names, kind in expected)
        text = f"--{given[1]} {given[2]}: expected {' or '.join(kinds)}"
    sys.stderr.write(f"{prog.split()[0]}: error: {text} ({prog} --help lists the options)\n")
    return SystemExit(2)


def given_options(arguments: Sequence[str] | None) -> frozenset[str]:
    """The options that a command line gives itself, in contrast to those of a recipe or of a run to resume.

    Args:
        arguments: command line without the program's name; None reads ``sys.argv``.

    Example:
        >>> sorted(given_options(["--config", "smoke", "--optim", "{lr: 0.1}", "--device=cpu", "--views+", "{}"]))
        ['config', 'optim.lr', 'train.device', 'views']
    """
    given: set[str] = set()
    for option, values in _grouped(sys.argv[1:] if arguments is None else arguments):
        name = option.removeprefix("--").removesuffix("+")
        node = None
        if len(values) == 1 and values[0].startswith("{"):
            node = _read_yaml(values[0], option)
        elif name not in ("config", "resume") and len(values) == 1 and (file := Path(values[0])).suffix in _NODES:
            node = read_config(file) if file.is_file() else None
        given |= {key for key, _ in flatten({name: node})}
    return frozenset(given)


def _needs_recipe(arguments: Sequence[str]) -> bool:
    """Whether a command line names images, and neither a recipe nor a run to resume."""
    names = {option.removeprefix("--") for option, _ in _grouped(arguments)}
    return not {"config", "resume"} & names and not names.isdisjoint({"data", "data.source"})


def _without_a_run_to_come(arguments: list[str]) -> list[str]:
    """Arguments without ``--resume`` where that is ``--out`` too and has no checkpoint yet: the run begins."""
    grouped = list(_grouped(arguments))
    folders = {option: Path(values[0]).expanduser().resolve() for option, values in grouped if len(values) == 1}
    run = folders.get("--resume")
    if run is None or run != folders.get("--out") or (run / LAST).exists():
        return arguments
    words = ([option, *values] if len(values) > 1 else ["=".join([option, *values])] for option, values in grouped)
    return [word for option in words if not option[0].startswith("--resume") for word in option]


def _grouped(arguments: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each option with its values, of which there are several where the shell has expanded a pattern."""
    position = 0
    while position < len(arguments):
        option, has_value, value = arguments[position].partition("=")
        position += 1
        values = [value] if has_value else []
        while position < len(arguments) and not has_value and not _OPTION.match(arguments[position]):
            values.append(arguments[position])
            position += 1
        yield _SHORT.get(option, option), values


def _expand(arguments: Sequence[str], recipes: Path) -> list[str]:
    """Arguments as ``--option=value``, with recipes found, runs to resume opened, and several values made a list."""
    expanded: list[str] = []
    for option, values in _grouped(arguments):
        if option == "--views":
            # Else an entry takes what it does not say from the recipe's entry at the same place.
            expanded.append("--views=[]")
        if values == [""]:
            raise ValueError(f"{option} has an empty value, as an unset variable gives")
        if option in ("--config", "--resume"):
            if len(values) != 1:
                raise ValueError(f"{option} needs one value, got {values}")
            if option == "--resume":
                expanded += _resume_arguments(values[0])
            else:
                expanded.append(f"--config={recipe_path(values[0], recipes)}")
        elif len(values) > 1:
            expanded.append(f"{option}={json.dumps(values)}")
        else:
            expanded.append("=".join([option, *values]))
    # Options win over a file wherever they stand.
    return sorted(expanded, key=lambda argument: not argument.startswith("--config="))


def _check(arguments: list[str], parser: ArgumentParser) -> None:
    """Refuse what the parser would take in silence, or refuse in other words than the user's."""
    typed = [action for action in parser._actions if hasattr(action, "_typehint") and not action.dest.endswith(".help")]
    hints = {action.dest: action._typehint for action in typed}
    for argument in arguments:
        option, _, value = argument.partition("=")
        name = option.removeprefix("--").removesuffix("+")  # with it the value is appended to a list
        if option == "--config":
            for key, leaf in flatten(read_config(Path(value))):
                _check_key(key, leaf, f"{value}: ", hints)
            continue
        _refuse_earlier(name, "--", hints)
        for leaf in hints:
            if re.match(rf"{re.escape(leaf)}(\[|\..*\.)", name):
                # It would silently replace all that stands beside it.
                raise ValueError(f"{option} is too deep; give the whole node, as --{leaf} '{{...}}'")
        if value.startswith("{"):
            for key, leaf in flatten({name: _read_yaml(value, option)}):
                _check_key(key, leaf, "--", hints)
        elif option.startswith("--"):
            known = option in parser._option_string_actions
            if not known or (_inside(name, hints) and not Path(value).is_file()):
                _check_key(name, value, "--", hints)
            elif name in hints:
                _check_text(option, value, hints[name])


def _check_text(option: str, value: str, hint: Any) -> None:
    """Refuse a value of which YAML, as the parser reads it, makes another number or nothing."""
    if str not in (get_args(hint) or (hint,)):
        _read_yaml(value, option)
    elif value[:1] in ("#", "&"):  # a comment, an anchor
        raise ValueError(f"{option} {value}: YAML reads nothing there; quote it once more: {option} '\"{value}\"'")


def _refuse_earlier(key: str, where: str, leaves: Collection[str]) -> None:
    old = ".".join(key.split(".")[:2])
    if old in _EARLIER and not {key, old} & {*leaves} and (key == old or old != "method.momentum"):
        raise ValueError(
            f"{where}{key} is from an earlier version, whose configurations and checkpoints this one does not "
            f"read; recipes have {_EARLIER[old]} in its place"
        )


def _check_key(key: str, value: Any, where: str, hints: dict[str, Any]) -> None:
    _refuse_earlier(key, where, hints)
    if inside := _inside(key, hints):
        if value != {}:
            raise ValueError(f"{where}{key} holds options ({', '.join(inside)}) and cannot be {_in_yaml(value)}")
    elif key in hints:
        kinds = get_args(hints[key]) or (hints[key],)
        if value is None and NoneType not in kinds:
            raise ValueError(f"{where}{key} cannot be null")
        if str in kinds and isinstance(value, int | float) and not {int, float} & {*kinds}:
            raise ValueError(f"{where}{key} {value} is no text; quote it")
    elif not any(key.startswith(f"{leaf}.") for leaf in hints):
        raise ValueError(f"{where}{key} is no option{_meant(key, hints)}")


def _inside(node: str, leaves: Collection[str]) -> list[str]:
    """Names of what a node holds; empty for what is no node."""
    start = f"{node}." if node else ""
    return sorted({leaf[len(start) :].partition(".")[0] for leaf in leaves if leaf.startswith(start)})


def _meant(key: str, leaves: Collection[str]) -> str:
    name = key.rpartition(".")[2]
    close = difflib.get_close_matches(key, leaves, cutoff=0.8)
    close = close or sorted(leaf for leaf in leaves if leaf.rpartition(".")[2] == name)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    node = key
    while not (inside := _inside(node, leaves)):
        node = node.rpartition(".")[0]
    return f"; {node or 'a configuration'} has {', '.join(inside)}"


def _in_yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()


class _Loader(yaml.SafeLoader):
    """YAML without what it reads otherwise than people mean it."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """A mapping, whose keys must differ: else the last would win."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: list[Any] = []
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.composer.ComposerError(None, None, f"{key.value} stands there twice", key.start_mark)
            seen.append(key.value)
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """An integer of base 10, 2 or 16: else 010 is 8 and 1:30 is 90."""
        value: int = super().construct_yaml_int(node)
        if re.match(r"[-+]?0[0-7_]|.*:", node.value):
            problem = f"{node.value} is {value} in YAML; write the number that is meant, or quote it for a text"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return value

    def construct_yaml_timestamp(self, node: yaml.ScalarNode) -> Any:
        """A text: no option is a date."""
        return node.value

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        """A floating-point number: else 1:30.5 is 90.5."""
        if ":" in node.value:
            problem = f"{node.value} is {super().construct_yaml_float(node)} in YAML; write the number that is meant"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_yaml_float(node)


_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.construct_yaml_timestamp)


def _read_yaml(text: str, name: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"{name}{line}: {getattr(error, 'problem', None) or error}") from error


def read_config(path: Path) -> dict[str, Any]:
    """The content of a YAML file with options.

    Raises:
        ValueError: if it is not such a file, says a key twice, or has a number that people and YAML read differently.
    """
    try:
        content = _read_yaml(path.read_text(), str(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a YAML file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {_in_yaml(content)[:40]} instead of options, such as `seed: 0`")
    return content


def _resume_arguments(resume: str) -> list[str]:
    run, checkpoint = named_run(resume)
    missing = [str(path.relative_to(run)) for path in (run / "config.yaml", checkpoint) if not path.is_file()]
    if missing:
        weights = f"; --encoder.weights {resume} starts from its weights" if checkpoint.is_file() else ""
        raise ValueError(
            f"--resume {resume}: not a run directory with a checkpoint, nor a checkpoint in one "
            f"({', '.join(missing)} missing){weights}"
        )
    return [f"--config={run / 'config.yaml'}", "--out=null", f"--resume={resume}"]


def refuse_changed(settings: Any, names: Sequence[str], when: str) -> None:
    """Refuse settings that have no effect: those named must have their default values.

    Args:
        settings: dataclass, whose nodes may be dataclasses too.
        names: names of the fields without effect.
        when: condition that takes their effect away, such as "with framework simclr".

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
    """A configuration as nested plain values, as in ``config.yaml`` and checkpoints."""
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
    text = yaml.safe_dump(to_dict(config), sort_keys=False)
    write_atomically(path, lambda file: file.write(text.encode()))


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
        and not key.endswith(FREE_IN_ANY_NODE)
    ]


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and plain value of each option of a configuration; a mapping that is one option stays whole."""
    for name, value in vars(config).items():
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _plain(value)


def changed_values(old: Any, new: Any) -> dict[str, Any]:
    """By dotted key, the values of a configuration that another one of its kind has changed."""
    new_values = dict(leaves(new))
    return {key: value for key, value in leaves(old) if new_values[key] != value}


def with_plain_values(config: Config, values: Mapping[str, Any]) -> Config:
    """A configuration with other values for some dotted keys, plain as a file has them."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(type(config))
    plain = to_dict(config)
    for key, value in values.items():
        node, _, name = key.rpartition(".")
        (value_at(plain, node) if node else plain)[name] = copy.deepcopy(value)  # the parser changes what it is given
    return type(config)(**vars(parser.instantiate(parser.parse_object(plain))))


def value_at(values: Mapping[str, Any], key: str) -> Any:
    """The value of nested mappings at a dotted key."""
    return functools.reduce(operator.getitem, key.split("."), values)


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """A configuration with other values for some dotted keys, also within an option that is a mapping."""
    for key, value in values.items():
        node, _, rest = key.partition(".")
        is_mapping = isinstance(config, Mapping)
        old: Any = config[node] if is_mapping else getattr(config, node)  # type: ignore[index]  # mypy does not narrow
        changed = {node: with_values(old, {rest: value}) if rest else value}
        config = {**config, **changed} if is_mapping else dataclasses.replace(config, **changed)  # type: ignore
    return config


def with_given(config: Config, old: Config, given: Collection[str]) -> Config:
    """A configuration with the values that another one of its kind has of the options that the user has set."""
    return with_values(
        config, {key: value for key, value in changed_values(old, config).items() if is_given(given, key)}
    )


def give_way(config: Config, values: Mapping[str, Any], given: Collection[str] | None, why: str) -> Config:
    """A configuration with other values for some dotted keys, but for those that the user has set; the log says it."""
    old = dict(leaves(config))
    for key, value in values.items():
        if old[key] != value and not is_given(given, key):
            logger.info("%s: %s instead of %s, %s", key, "null" if value is None else value, old[key], why)
            config = with_values(config, {key: value})
    return config


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of each leaf of nested mappings."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
