"""Checks of a method package's recipes: the claims of their headers, and that each trains what it says.

The header is the comment at the top of a recipe, for people and for these checks::

    # SCE on CIFAR-10: ResNet-18, 200 epochs, one GPU (linear 90.34 in the paper).
    #
    # Command:   ssl-sce-train --config cifar10 --data.root data --out runs/cifar10
    # Run:       not yet run.
    # Score:     linear top-1 90.34 (table 5)
    # Evaluate:  ssl-core eval linear runs/cifar10 --protocol sce_small
    #
    # Add to the command, after the published top-1 where there is one:
    #   87.56  --method.coefficient 1 --method.temperature 0.2  # MoCo v2
    #       -  --optim.lr 0.5  # the learning rate that the paper states
"""

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass, replace
from functools import cache, wraps
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image
from torch import Tensor

from ssl_core import cli
from ssl_core.config import flatten, given_options, parse_config, to_dict
from ssl_core.evaluate.protocol import PROTOCOLS
from ssl_core.nn import make_encoder
from ssl_core.pretrain import pretrain
from ssl_core.recipes import recipe_headers
from ssl_core.train import Step, make_optimizer
from ssl_core.trial import random_views

_OVERRIDE = re.compile(r"#\s+(\d+\.\d+|-)\s+(--.+)")
_EVALUATION = re.compile(r"ssl-core (eval .+)")

_NODES = ("method", "projector", "predictor")  # of a configuration, with sizes of the method
_BATCH = 8  # images of a shrunk recipe's step
_IMAGES = 300  # of a folder, fewer than many a recipe's batch


class Recipes:
    """The recipes that a method package ships, with their checks.

    Args:
        train: module ``train`` of the package, with its ``Config`` and ``make_method``, and ``recipes/`` beside it.
        words: names of the methods; each recipe's first line has one of them.
        keys_per_image: function of the node ``method`` of a configuration that returns the number of keys that a step
            enqueues for each image; 0 for a method without a queue.

    Attributes:
        names: names of all recipes, in order.

    Example::

        RECIPES = Recipes(ssl_sce.train, words=["SCE", "MoCo", "ReSSL"])

        @pytest.mark.parametrize("name", RECIPES.names)
        def test_everything_in_the_header_holds(name):
            RECIPES.check_header(name)
    """

    def __init__(
        self, train: ModuleType, *, words: Sequence[str], keys_per_image: Callable[[Any], int] = lambda method: 1
    ) -> None:
        self.train = train
        self.words = words
        self.keys_per_image = keys_per_image
        self.names = [name for name, _ in recipe_headers(_folder(train))]
        package = train.__name__.partition(".")[0]
        self._command = re.compile(rf"(?:{package.replace('_', '-')}-train|-m {package}) (--config .+)")

    def parse(self, *arguments: str) -> Any:
        """The configuration that the package's command reads from a command line; SystemExit on a wrong one."""
        return parse(self.train, *arguments)

    def header(self, name: str) -> list[str]:
        """The lines of a recipe's header."""
        lines = (_folder(self.train) / f"{name}.yaml").read_text().splitlines()
        return lines[: next(index for index, line in enumerate(lines) if not line.startswith("#"))]

    def commands(self, name: str) -> list[list[str]]:
        """The arguments of each training command in a header."""
        return [shlex.split(found[1]) for line in self.header(name) if (found := self._command.search(line))]

    def overrides(self, name: str) -> list[tuple[float | None, list[str]]]:
        """(score, options) of each override in a header; score None where nothing is published."""
        found = [_OVERRIDE.fullmatch(line) for line in self.header(name)]
        return [
            (None if match[1] == "-" else float(match[1]), shlex.split(match[2], comments=True))
            for match in found
            if match
        ]

    def check_header(self, name: str) -> None:
        """Check that a header is complete and that everything in it that can be run parses.

        The first line is a sentence of its own that says a method; there is the command; there is a score, or "not
        yet run"; an override changes the recipe or stands for its own score; an evaluation is a command of
        ``ssl-core`` on the folder that training writes, with the recipe's features where it is a kNN; and no option
        stands anywhere else.

        Raises:
            AssertionError: naming the line.
        """
        header = self.header(name)
        first, text = header[0], "\n".join(header)
        lines = [line for _, line in recipe_headers(_folder(self.train))]
        assert re.match(r"# \S.{30,}", first), f"{first!r} is no sentence, as --config list shows it"
        assert any(word in first for word in self.words), f"{first!r} names none of {self.words}"
        assert lines.count(first.lstrip("# ")) == 1, f"{first!r} is the first line of another recipe too"

        commands = self.commands(name)
        assert any(command[:2] == ["--config", name] for command in commands), f"no command has --config {name}"
        for command in commands:
            self._check_parses(command)
        is_honest = "not yet run" in text or re.search(r"top-?1 \d+\.\d", text) or "Score:     none" in text
        assert is_honest, 'no score "top-1 ..." or "Score:     none", and no "not yet run"'

        for score, options in self.overrides(name):
            changes = self._check_parses(["--config", name, *options]) != self.parse("--config", name)
            assert changes or f"top-1 {score}" in text, f"{shlex.join(options)} changes nothing"
        for line in header:
            if re.search(r"\s--\w", line):
                known = _OVERRIDE.fullmatch(line) or self._command.search(line) or _EVALUATION.search(line)
                assert known, f"{line!r} has an option, but is neither override nor command"
            if found := _EVALUATION.search(line):
                self._check_evaluation(name, found[1])

    def check_full_size(self, name: str) -> None:
        """Check that a recipe's method builds with its own sizes, which no tensor is made for.

        The projector takes the encoder's features, the predictor (where there is one) gives what it takes, and the
        queue (where there is one) is as long and as wide as configured and holds the keys of a step.

        Raises:
            AssertionError: naming the sizes that do not fit.
        """
        config = self.parse("--config", name)
        with torch.device("meta"):
            method = self._method(config)
            projections = method.projector(torch.empty(4, method.encoder.num_features))
            if (predictor := getattr(method, "predictor", None)) is not None:
                shape = predictor(projections).shape
                assert shape == projections.shape, f"the predictor makes {shape} of {projections.shape}"
        elsewhere = [key for key, value in method.named_parameters() if not value.is_meta]
        assert not elsewhere, f"not made where torch.device says: {elsewhere}"
        enqueued = self._enqueued(method, config, config.train.batch_size)
        if enqueued:
            [length] = [value for key, value in flatten(to_dict(config.method)) if key.endswith("queue.length")]
            shape = (length, projections.shape[1])
            assert method.queue.keys.shape == shape, f"the queue is {tuple(method.queue.keys.shape)}, not {shape}"
            assert enqueued <= len(method.queue.keys), f"a step's {enqueued} keys do not fit a queue of {shape}"

    def check_step(self, name: str) -> None:
        """Check that a recipe's first step moves what it should, shrunk to few images, pixels and channels.

        Everything that chooses a path through the code stays. The optimizer is at its highest rate, for the first
        step of a warm-up has none; SyncBatchNorm, of one process BatchNorm, is left out.

        Raises:
            AssertionError: naming what stood still, or moved against expectation.
        """
        config = self.parse("--config", name)
        keys_per_image = self.keys_per_image(config.method)
        config = shrunk(config, queue_length=_BATCH * (1 + keys_per_image) if keys_per_image else None)
        method = self._method(config).train()
        optimizer = make_optimizer(method, config.optim, batch_size=_BATCH)
        views, step = random_views(method, _BATCH, _channels(config)), Step(0, 10, 5)
        parameters = dict(method.named_parameters())
        online = {key: value for key, value in parameters.items() if value.requires_grad}
        momentum = {key: value for key, value in parameters.items() if key.startswith("momentum_")}
        enqueued = self._enqueued(method, config, _BATCH)
        before = {key: value.clone() for key, value in method.state_dict().items()}

        output = method(views, step)
        output.loss.backward()
        optimizer.step()
        method.update(output.keys, step)

        assert output.loss.isfinite(), f"the loss is {output.loss.item()}"
        assert output.loss != 0, "the loss is 0"
        without = [key for key, value in online.items() if value.grad is None]
        assert not without, f"no gradient reaches {without}"
        assert _moved(before, online), "the optimizer moves nothing"
        assert _moved(before, momentum) or not momentum, "the momentum branch stands still"
        if enqueued:
            written = (method.queue.keys != before["queue.keys"]).any(dim=1).nonzero().flatten().tolist()
            assert written == list(range(enqueued)), f"rows {written} of the queue are new, not the first {enqueued}"

    def check_folder(self, name: str, folder: Path) -> None:
        """Check that a recipe takes a folder of few images without labels in place of its own data.

        Everything that a run may refuse is done, with a small network. Nothing is trained.

        Args:
            name: name of the recipe.
            folder: empty folder to work in.

        Raises:
            AssertionError: if the folder is refused.
        """
        source = folder / "images"
        source.mkdir()
        for number in range(_IMAGES):
            image = Image.new("RGB", (8 + number % 5, 8 + number % 3), (number % 256, number // 2, number % 7))
            image.save(source / f"{number}.bmp")
        arguments = ["--config", name, f"--data.source={source}", "--data.workers=0", "--device=cpu"]
        config = self.parse(*arguments, f"--out={folder / 'run'}")
        # Without a trial of precisions: oneDNN's bfloat16 weight gradient of a strided convolution of one pixel, which
        # views as small as these come to, reads memory that nobody wrote.
        small = replace(shrunk(config), train=replace(config.train, precision="float32"), method=config.method)

        def stop(run: Any) -> Any:
            if self.train.main.prepare is not None:
                self.train.main.prepare(run)
            raise _StopError

        try:
            pretrain(small, self.train.make_method, name=name, prepare=stop, given=given_options(arguments))
        except _StopError:
            return
        except ValueError as error:
            raise AssertionError(f"{name} refuses a folder of images: {error}") from error

    def _check_parses(self, arguments: list[str]) -> Any:
        try:
            return self.parse(*arguments)
        except SystemExit as error:
            raise AssertionError(f"{shlex.join(arguments)} is refused") from error

    def _check_evaluation(self, name: str, command: str) -> None:
        """That a command of ``ssl-core eval`` parses and asks for what the recipe trains, without running it."""
        asked: list[tuple[str, dict[str, Any]]] = []

        def record(by: str) -> Callable[..., None]:
            return wraps(cli.EVALUATIONS[by])(lambda encoder, **options: asked.append((encoder, options | {"by": by})))

        with patch.dict(cli.EVALUATIONS, {by: record(by) for by in cli.EVALUATIONS}):
            try:
                cli.main(shlex.split(command))
            except SystemExit as error:
                raise AssertionError(f"{command!r} is refused") from error
        [(encoder, options)] = asked
        outs = {command[command.index("--out") + 1] for command in self.commands(name) if "--out" in command}
        assert encoder in outs, f"{command!r} evaluates {encoder}, but training writes {sorted(outs)}"
        protocol = options.get("protocol", "moco")
        assert protocol in PROTOCOLS, f"{command!r}: no protocol is called {protocol!r}"
        if options["by"] == "knn":
            features = self.parse("--config", name).evaluate.features
            asked_for = options.get("features", "backbone")
            assert asked_for == features, f"{command!r} is on the {asked_for}, but the recipe's kNN on the {features}"

    def _method(self, config: Any) -> Any:
        size = max(size for view in config.views for size in view.sizes)
        encoder = make_encoder(config.encoder, channels=_channels(config), image_size=size)
        return self.train.make_method(config, encoder, encoder.num_features, config.view_specs())

    def _enqueued(self, method: Any, config: Any, batch_size: int) -> int:
        """Keys that a step is said to enqueue, after a look at whether there is a queue."""
        keys_per_image = self.keys_per_image(config.method)
        has_queue = hasattr(method, "queue")
        found = "a queue" if has_queue else "no queue"
        assert has_queue == (keys_per_image > 0), f"keys_per_image of Recipes is {keys_per_image}, but there is {found}"
        return keys_per_image * batch_size


class _StopError(Exception):
    """A run has come to its first step."""


@cache
def parse(train: ModuleType, *arguments: str) -> Any:
    """The configuration that a package's command reads from a command line; SystemExit on a wrong one."""
    return parse_config(train.Config, arguments, prog=train.__name__, description="", recipes=_folder(train))


def shrunk(config: Any, *, queue_length: int | None = None) -> Any:
    """The configuration of a method with few pixels and channels, and a batch of eight images.

    Everything that chooses a path through the code stays.

    Args:
        config: configuration of a run.
        queue_length: length that a longer queue is cut to; None leaves it as it is.
    """
    largest = max(size for view in config.views for size in view.sizes)
    sizes = {"hidden_dim": 16, "out_dim": 8, "batch_norm_splits": 2}
    if queue_length is not None:
        sizes["length"] = queue_length
    nodes = {name: _small(node, sizes) for name, node in vars(config).items() if name in _NODES}
    options = config.encoder.options | {"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]}
    return replace(
        config,
        train=replace(config.train, batch_size=_BATCH, accumulate=1),
        views=[replace(view, size=[max(8, size * 16 // largest) for size in view.sizes]) for view in config.views],
        encoder=replace(config.encoder, options=options),
        **nodes,
    )


def _folder(train: ModuleType) -> Path:
    assert train.__file__ is not None
    return Path(train.__file__).parent / "recipes"


def _small(node: Any, sizes: Mapping[str, int]) -> Any:
    """A node of a configuration with no number above that of ``sizes`` for its name."""
    if is_dataclass(node) and not isinstance(node, type):
        return replace(node, **_small(vars(node), sizes))
    if isinstance(node, Mapping):
        return {key: min(old, sizes[key]) if key in sizes else _small(old, sizes) for key, old in node.items()}
    return node


def _channels(config: Any) -> int:
    return 1 if config.data.source == "digits" else 3


def _moved(before: dict[str, Tensor], parameters: dict[str, Tensor]) -> bool:
    return any(not torch.equal(before[key], value) for key, value in parameters.items())
