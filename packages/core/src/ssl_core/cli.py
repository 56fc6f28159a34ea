"""The command ``ssl-core``: everything around a training run that is independent of the method.

Options are read from the signatures of the functions that do the work. Of a configuration only the nodes ``data``,
``views``, ``evaluate`` and ``seed`` are read; the rest of it is a method's.
"""

import importlib.util
import os
import shlex
import sys
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser, Namespace

from ssl_core import distributed
from ssl_core.allocator import keep_freed_memory
from ssl_core.auto import LEAST_IMAGES, Seen, decided, decisions_text, this_machine
from ssl_core.backbone import load_card
from ssl_core.command import errors_in_one_line
from ssl_core.config import read_config, refused_arguments
from ssl_core.console import lasting
from ssl_core.data import DataConfig, inspect, open_encoded, open_source, pack
from ssl_core.data.source import listing
from ssl_core.detect.commands import evaluate_detection
from ssl_core.doctor import doctor
from ssl_core.evaluate import (
    EvaluateConfig,
    compare,
    draw_tsne,
    embed,
    evaluate_finetune,
    evaluate_knn,
    evaluate_linear,
    evaluate_similarity,
    evaluate_transfer,
    evaluate_voc07,
    export,
    find_duplicates,
    rank,
    select,
    shared_data,
)
from ssl_core.evaluate.online import decoded_side
from ssl_core.files import check_file
from ssl_core.recipes import recipe_path
from ssl_core.report import write_report
from ssl_core.run import PretrainConfig, choose_device
from ssl_core.views import ViewConfig, make_view_specs, save_view_gallery


def main(arguments: Sequence[str] | None = None) -> None:
    """The command ``ssl-core``."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:2] == _PACK.split("-"):
        arguments[:2] = [_PACK]
    about = "Look at data and views; evaluate and export encoders."
    parser = ArgumentParser(prog="ssl-core", description=about, exit_on_error=False)
    commands = parser.add_subcommands(dest="command")
    for name, function in COMMANDS.items():
        commands.add_subcommand(name, _parser(name, function), help=_first_line(function))
    evaluate = ArgumentParser(description="Evaluate an encoder on labeled images.", exit_on_error=False)
    commands.add_subcommand("eval", evaluate, help="Evaluate an encoder on labeled images.")
    evaluations = evaluate.add_subcommands(dest="by")
    for name, function in EVALUATIONS.items():
        evaluations.add_subcommand(name, _parser(f"eval {name}", function), help=_first_line(function))

    # Without defaults, so that what was given can be told from what was not.
    try:
        given = parser.parse_args(arguments, defaults=False)
    except ArgumentError as error:
        depth = 2 if arguments[:1] == ["eval"] else 1
        names = [name for name in arguments[:depth] if name in {"eval", *COMMANDS, *EVALUATIONS}]
        raise refused_arguments(" ".join(["ssl-core", *names]), error) from error
    with errors_in_one_line("ssl-core"):
        options = given[given.command]
        if given.command == "eval":
            with lasting("stdout"):  # what may take days writes its result, whoever reads what it prints
                _call(EVALUATIONS[options.by], options[options.by])
        else:
            _call(COMMANDS[given.command], options)


def scan(data: DataConfig, *, split: Literal["train", "test", "labelled"] = "train") -> None:
    """Read every image of a source and print what is there, what stands out, and what training would decide.

    Args:
        data: images to read.
        split: part of the images: train, test, or labelled, the training images of a probe.
    """
    report = inspect(data, split=split, progress=True)
    print(report)
    if split == "test" or report.num_images < LEAST_IMAGES:
        return
    if report.classes is not None:
        try:
            open_encoded(data, "test")
        except ValueError as error:
            print(f"{'note':<11} {error}")
    machine = this_machine(choose_device("auto"))
    seen = Seen(report.num_images, report.sides, report.read_channels)
    _, decisions = decided(PretrainConfig(data=data, views=[ViewConfig()]), seen, machine, ())
    print(f"\nthe recipe auto would take, on {machine}:\n{decisions_text(decisions)}")
    print("and half as many keys in a queue as there are images, and the faster precision")


def pack_source(data: DataConfig, out: str, *, shard_size: str = "512MB") -> None:
    """Write a source's images as tar shards, with their index, which data.source takes in its place.

    Args:
        data: images to pack.
        out: folder to write.
        shard_size: largest size of a shard of more than one image, such as 512MB or 1GiB.
    """
    for split, packed in pack(data, out, shard_size=shard_size).items():
        print(f"wrote {packed.num_images:,} images ({split}) in {packed.num_shards:,} shards")
        if packed.broken:
            print(f"left out {len(packed.broken):,} broken images: {listing(packed.broken)}")
    print(f"train on them by --data.source {shlex.quote(out)}")


def draw_views(
    config: str,
    *,
    data: DataConfig | None = None,
    out: str = "views.png",
    rows: int = 8,
    epoch: int = 0,
    seed: int | None = None,
) -> None:
    """Render a PNG gallery of the views of a configuration beside their originals.

    Args:
        config: YAML file, run directory, or shipped recipe such as ``sce:cifar10``.
        data: images to take instead of the configuration's.
        out: file of the PNG.
        rows: number of images to show.
        epoch: epoch whose views are shown.
        seed: seed of the views; null takes the configuration's.
    """
    nodes = read_nodes(config)
    specs = make_view_specs(nodes.views)
    source = open_source(data or nodes.data, at_least=decoded_side(specs))
    check_file(Path(out))
    save_view_gallery(source, specs, out, num_images=rows, seed=nodes.seed if seed is None else seed, epoch=epoch)
    names = ", ".join(spec.name for spec in specs)
    print(f"wrote {out}: {min(rows, len(source))} images of {source.name} and their views {names}")


def embed_source(
    data: DataConfig,
    *,
    model: str,
    out: str,
    split: Literal["train", "test", "labelled"] = "train",
    features: Literal["backbone", "projection"] = "backbone",
    points: bool = False,
    neighbors: int = 0,
    thumbnails: int = 0,
    device: torch.device | str = "cpu",
) -> None:
    """Write the features of a source's images, with identifiers and labels.

    Args:
        data: images to embed.
        model: run directory, ``backbone.safetensors`` or ``timm:NAME``.
        out: file to write, ``.npz`` or ``.parquet``.
        split: part of the images: train, test, or labelled, the training images of a probe.
        features: layer to evaluate: backbone, or projection, the projector after it.
        points: whether there are columns x and y.
        neighbors: number of nearest images in column neighbors; 0 is none.
        thumbnails: side of the JPEG in column image, pixels; 0 is none.
        device: device that computes the features.
    """
    columns: dict[str, Any] = {"points": points, "neighbors": neighbors, "thumbnails": thumbnails}
    embed(model, out, data=data, split=split, features=features, device=device, **columns)


def report(
    runs: list[str],
    *,
    data: DataConfig | None = None,
    images: int = 5000,
    out: str | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Write what runs have learned as a page for a browser: curves, views, neighbors, map, classes.

    Args:
        runs: run directories, shown side by side.
        data: images to look at; null takes those that all runs were trained on.
        images: largest number of images of a split that are looked at, sampled by a seed, 2 to 5000.
        out: file of the page; null is report.html in the run directory, where there is one.
        device: device that computes the features.
    """
    path, look, votes = write_report(runs, data=data, images=images, out=out, device=device)
    if votes is not None:
        print(
            f"\n{len(votes.known):,} training and {len(votes.labels):,} test images of {look.shown.name}; "
            f"kNN with k = {votes.k}, T = {votes.temperature:g}, cosine\n"
        )
        for title in votes.predicted:
            print(f"  {title:16} {100 * votes.top1(title):5.1f} %  {'#' * round(40 * votes.top1(title))}")
    print(f"""
report     {path}  (open it in a browser)
backbone   {Path(runs[0]) / "backbone.safetensors"}  (ssl_core.load_backbone makes a timm module of it)

next       ssl-core eval linear {shlex.quote(runs[0])} --protocol cached""")
    package = load_card(Path(runs[0]) / "backbone.json").recipe
    if importlib.util.find_spec(package.replace("-", "_")):  # a method in a script of one's own has no command
        print(f"""           {package}-train --config list
           {package}-train --data.source FOLDER --budget 10m --out runs/mine""")


# `ssl-core data pack`, two words that options of jsonargparse cannot have; the folder pack is ./pack.
_PACK = "data-pack"


@dataclass(frozen=True)
class Nodes:
    """The nodes of a configuration that core reads."""

    data: DataConfig = field(default_factory=DataConfig)
    views: list[ViewConfig] = field(default_factory=list)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    seed: int = 0


def read_nodes(config: str) -> Nodes:
    """The nodes of a YAML file, a run directory, or a shipped recipe such as ``sce:cifar10``.

    Raises:
        FileNotFoundError: if there is no such file or package.
        ValueError: if a node is not what it should be.
    """
    path = Path(config)
    package, colon, name = config.partition(":")
    if path.is_dir():
        path = path / "config.yaml"
    elif colon and not path.exists():
        spec = importlib.util.find_spec(f"ssl_{package}")
        if spec is None or spec.origin is None:
            raise FileNotFoundError(f"{config}: no package ssl-{package} is installed")
        path = recipe_path(name, Path(spec.origin).parent / "recipes")
    if not path.is_file():
        raise FileNotFoundError(f"{config} is not a YAML file, a run directory or PACKAGE:RECIPE")
    values = read_config(path)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Nodes)
    try:
        parsed = parser.parse_object({name: values[name] for name in Nodes.__dataclass_fields__ if name in values})
    except ArgumentError as error:
        raise ValueError(f"{path}: {error}") from error
    return Nodes(**vars(parser.instantiate(parsed)))


COMMANDS: dict[str, Callable[..., Any]] = {
    "data": scan,
    _PACK: pack_source,
    "views": draw_views,
    "embed": embed_source,
    "export": export,
    "compare": compare,
    "rank": rank,
    "report": report,
    "duplicates": find_duplicates,
    "select": select,
    "doctor": doctor,
}
EVALUATIONS: dict[str, Callable[..., Any]] = {
    "knn": evaluate_knn,
    "linear": evaluate_linear,
    "finetune": evaluate_finetune,
    "transfer": evaluate_transfer,
    "voc07": evaluate_voc07,
    "detection": evaluate_detection,
    "similarity": evaluate_similarity,
    "tsne": draw_tsne,
}
_TAKES_SOURCE = (scan, pack_source, embed_source, find_duplicates)
_OWN_IMAGES = (evaluate_voc07, evaluate_detection)  # of the node data they take where these are, and how they are read
_WHERE = {"root", "channels", "workers", "renderer", "memory_gib", "broken_limit", "scaled_decode"}
# What each of several processes would do in full.
_ONE_PROCESS = (scan, pack_source, draw_views, export, report)
# Whose processes fit classifiers each by itself, and wait for the one that takes longest.
_LONG_FITS = (compare, evaluate_transfer, evaluate_voc07)
_DAY_S = 86400.0
_SEVERAL = {
    "encoders": "run directories, .safetensors files, timm:NAME, random or pixels, one or more",
    "runs": "run directories, one or more",
}
_FLAGS = {
    "across_methods": "compare runs of several methods, for which the measures were not made",
    "dry_run": "say what would be done, and do nothing",
    "points": "columns x and y: t-SNE above the principal components, of more than 5,000 images PCA",
    "keep": "leave the folders of checkpoint and log when all is done",
}


def _parser(name: str, function: Callable[..., Any]) -> ArgumentParser:
    """A parser of a function's arguments; an argument ``data`` becomes the options ``--data.*``."""
    usage = f"ssl-core {name.replace('-', ' ')} {_needed(function)}[options]"
    parser = ArgumentParser(usage=usage, description=_first_line(function), allow_abbrev=False, exit_on_error=False)
    arguments = signature(function).parameters
    takes_source = function in _TAKES_SOURCE
    if takes_source:
        parser.add_argument("source", nargs="+", help="a name or path, or several paths")
    for several in _SEVERAL.keys() & arguments.keys():
        parser.add_argument(several, nargs="+", help=_SEVERAL[several])
    skip: set[str | int] = {"data", "device", "progress", *_SEVERAL, *_FLAGS}
    parser.add_function_arguments(function, as_group=False, as_positional=_takes_positions(function), skip=skip)
    if "data" in arguments:
        unread = DataConfig.__dataclass_fields__.keys() - _WHERE if function in _OWN_IMAGES else set()
        if function is evaluate_detection:
            unread = unread - {"source"} | {"channels", "renderer", "memory_gib", "scaled_decode"}
        parser.add_class_arguments(DataConfig, "data", skip=unread | ({"source"} if takes_source else set()))
        if arguments["data"].default is None and not unread:
            group = (parser.groups or {})["data"]
            group.title = f"{group.title}; what is not given is as in the run or recipe"
    if "device" in arguments:
        parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto")
    for flag, meaning in _FLAGS.items():
        if flag in arguments:
            parser.add_argument(f"--{flag}", action="store_true", help=meaning)
    return parser


def _takes_positions(function: Callable[..., Any]) -> bool:
    """Whether an encoder, a run or a packed folder is named as it is; a source is one or more and so stands apart."""
    return function is pack_source or bool({"encoder", "run"} & signature(function).parameters.keys())


def _needed(function: Callable[..., Any]) -> str:
    """The arguments that a command cannot do without, as its usage line has them."""
    needed = ["source [source ...]"] if function in _TAKES_SOURCE else []
    for name, parameter in signature(function).parameters.items():
        if name in _SEVERAL:
            needed.append(f"{name} [{name} ...]")
        elif parameter.default is parameter.empty and name != "data":
            is_option = parameter.kind is parameter.KEYWORD_ONLY or not _takes_positions(function)
            needed.append(f"--{name} {name.upper()}" if is_option else name)
    return "".join(f"{each} " for each in needed)


def _call(function: Callable[..., Any], options: Namespace) -> None:
    keywords = {name: _expanded(value) for name, value in vars(options).items()}
    arguments = signature(function).parameters
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1 and function in _ONE_PROCESS:
        raise ValueError(f"{processes} processes would each do the same: start this command without torchrun")
    if "device" in arguments:
        timeout_s = _DAY_S if function in _LONG_FITS else distributed.TIMEOUT_S
        keywords["device"] = distributed.setup(choose_device(keywords.get("device", "auto")), timeout_s=timeout_s)
        if keywords["device"].type == "cpu":
            keep_freed_memory()
    if "data" in arguments:
        changes = dict(vars(keywords.pop("data"))) if "data" in keywords else {}
        if function in _TAKES_SOURCE:
            source = keywords.pop("source")
            changes["source"] = source[0] if len(source) == 1 else source
        if keywords.get("sets") is not None:
            if given := {"source", "test_source"} & changes.keys():
                raise ValueError(f"sets and data.{min(given)} both say what is read: give one of them")
            keywords["data"] = DataConfig(**changes)
        elif "source" in changes or (changes and function in _OWN_IMAGES):
            keywords["data"] = DataConfig(**changes)
        elif changes:
            # Some values given, but not the images: the rest is the run's or the configuration's own.
            if several := _SEVERAL.keys() & keywords.keys():
                own = shared_data(keywords[several.pop()], keywords.get("like"))
            else:
                own = read_nodes(
                    keywords.get("like") or keywords.get("encoder") or keywords.get("run") or keywords["config"]
                ).data
            keywords["data"] = replace(own, **changes)
    function(**keywords)


def _expanded(value: Any) -> Any:
    """A path, or each of several, with the home folder in place of ``~``."""
    if isinstance(value, list):
        return [_expanded(each) for each in value]
    return os.path.expanduser(value) if isinstance(value, str) else value


def _first_line(function: Callable[..., Any]) -> str:
    return (function.__doc__ or "").partition("\n")[0]
