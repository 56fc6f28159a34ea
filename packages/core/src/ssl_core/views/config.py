"""The views of a configuration file, and the specs that follow from them."""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from ssl_core.views.op import ViewOp
from ssl_core.views.ops import VIEW_OPS, Choice, RandomResizedCrop
from ssl_core.views.presets import HEAVY, PRESETS
from ssl_core.views.spec import ViewSpec, derive

Augmentation = str | list[str | dict[str, Any]]


@dataclass(frozen=True)
class ViewConfig:
    """One entry of a config's ``views``.

    Args:
        augmentation: name of a preset, or a list of such names and of ops, each ``{name: {argument: value}}``, in
            order; in a derived view, the ops that follow its parent's. See `make_ops`.
        size: side of the view in pixels; a list renders the same draws at several sizes, one tensor for each.
        crop_scale: scale of the random resized crop in place of the preset's (local crops).
        count: number of views with these ops, each with draws of its own.
        derived_from: index, in the flat list of views, of the earlier view that this one continues.
        share_crop_with: index of the earlier view whose crop this one takes; what follows the crop has draws of
            its own.
        partner: whether it is a view of the image's partner instead of the image itself, for a method that pairs
            images.
    """

    augmentation: Augmentation = "weak"
    size: int | list[int] = 224
    crop_scale: tuple[float, float] | None = None
    count: int = 1
    derived_from: int | None = None
    share_crop_with: int | None = None
    partner: bool = False

    @property
    def sizes(self) -> tuple[int, ...]:
        """``size`` as the tuple that it stands for."""
        return (self.size,) if isinstance(self.size, int) else tuple(self.size)


def make_ops(augmentation: Augmentation) -> tuple[ViewOp, ...]:
    """The ops that a config's ``augmentation`` stands for, in order.

    Args:
        augmentation: name in `PRESETS` or `HEAVY`, or a list of such names and of ops, each
            ``{name: {argument: value}}``.

    Raises:
        ValueError: for an unknown preset, op or argument, or a number outside its range.

    Example:
        >>> [op.name for op in make_ops(["ra_2_5", "jigsaw_4", {"grayscale": {"prob": 1}}])]
        ['rand_augment', 'jigsaw', 'grayscale']
    """
    if not isinstance(augmentation, str):
        parts = (make_ops(entry) if isinstance(entry, str) else (_op(entry),) for entry in augmentation)
        return tuple(itertools.chain.from_iterable(parts))
    presets = PRESETS | HEAVY
    if augmentation not in presets:
        raise ValueError(
            f"views: no augmentation is called {augmentation!r}; there are {', '.join(presets)}, or a list of them and "
            "of ops"
        )
    return presets[augmentation]


def make_view_specs(configs: Sequence[ViewConfig]) -> tuple[ViewSpec, ...]:
    """The flat tuple of views that a list of configs describes; a view's place in it is its index.

    Raises:
        ValueError: for an unknown preset, op or argument, a number outside its range, or ops that do not fit.

    Example:
        >>> views = make_view_specs([ViewConfig("weak", 32), ViewConfig("strong", 16, (0.1, 0.4), count=2)])
        >>> [(view.name, view.sizes) for view in views]
        [('weak', (32,)), ('strong', (16,)), ('strong', (16,))]
    """
    specs: list[ViewSpec] = []
    for config in configs:
        if config.count < 1:
            raise ValueError(f"views: count must be >= 1, got {config.count}")
        if config.derived_from is not None and config.share_crop_with is not None:
            raise ValueError(
                f"views: derived_from {config.derived_from} and share_crop_with {config.share_crop_with} exclude each "
                "other: a derived view has its parent's crop anyway"
            )
        ops = _ops(config)
        name = config.augmentation if isinstance(config.augmentation, str) else "custom"
        for _ in range(config.count):
            if config.derived_from is not None:
                spec = derive(specs, config.derived_from, ops, sizes=config.sizes, name=name)
            elif config.share_crop_with is not None:
                spec = _sharing_crop(specs, config.share_crop_with, ops, config.sizes, name)
            else:
                spec = ViewSpec(ops, config.sizes, name, partner=config.partner)
            if spec.partner != config.partner:
                raise ValueError(
                    f"views: view {len(specs)} has partner {config.partner}, but takes draws of a view whose partner "
                    f"is {spec.partner}: draws are for one image"
                )
            specs.append(spec)
    return tuple(specs)


def _sharing_crop(
    specs: Sequence[ViewSpec], parent: int, ops: tuple[ViewOp, ...], sizes: tuple[int, ...], name: str
) -> ViewSpec:
    # An index that is out of range is for derive to refuse.
    if 0 <= parent < len(specs) and (not isinstance(ops[0], RandomResizedCrop) or ops[0] != specs[parent].ops[0]):
        raise ValueError(
            f"views: share_crop_with {parent} needs both views to begin with one and the same random_resized_crop, got "
            f"{ops[0]} and {specs[parent].ops[0]}"
        )
    return derive(specs, parent, ops[1:], shared_ops=1, sizes=sizes, name=name)


def _ops(config: ViewConfig) -> tuple[ViewOp, ...]:
    ops = make_ops(config.augmentation)
    if config.crop_scale is None:
        return ops
    if not any(isinstance(op, RandomResizedCrop) for op in ops):
        raise ValueError(f"views: crop_scale {config.crop_scale} needs a random_resized_crop in {config.augmentation}")
    return tuple(
        dataclasses.replace(op, scale=config.crop_scale) if isinstance(op, RandomResizedCrop) else op for op in ops
    )


def _op(entry: dict[str, Any]) -> ViewOp:
    name, arguments = next(iter(entry.items()), ("", None))
    if len(entry) != 1 or not isinstance(arguments, dict | None):
        raise ValueError(f"views: an op is written {{name: {{argument: value}}}}, got {entry}")
    if name not in VIEW_OPS:
        raise ValueError(f"views: no op is called {name!r}; there are {', '.join(VIEW_OPS)}")
    # Ops inside an op are written as the ops of a view.
    nested = ("first", "second") if name == Choice.name else ()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(VIEW_OPS[name], name, skip=set(nested))
    for argument in nested:
        parser.add_argument(f"--{name}.{argument}", type=Augmentation, required=True)
    try:
        parsed = parser.parse_object({name: arguments or {}})[name]
    except ArgumentError as error:
        raise ValueError(f"views: {error}") from error
    for argument in nested:
        parsed[argument] = make_ops(parsed[argument])
    return VIEW_OPS[name](**parsed)
