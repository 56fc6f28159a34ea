"""Views as plans: an ordered tuple of ops with the paper's numbers, and sizes."""

from collections.abc import Sequence
from dataclasses import dataclass

from ssl_core.views.op import Framing, Placed, ViewOp


@dataclass(frozen=True)
class ViewSpec:
    """One view: its ops in order, and the size or sizes that it is rendered at.

    Several sizes show the same draws at several resolutions: the same box, the same colors, the same order of a
    jigsaw's cells (which are smaller in a smaller view), and the same blur sigma (in pixels of each view).

    A derived view begins with the first ops of an earlier view *and with their draws*; the rest have draws of their
    own. ``ops`` is always the complete tuple; `derive` builds such a view.

    Args:
        ops: operations on the image, in order; one of them at least brings it to the view's size.
        sizes: sides of the square views, in pixels.
        name: name of the view in a gallery or a log.
        derived_from: index of the view whose draws the first ``shared_ops`` ops take.
        shared_ops: number of ``ops`` that take their draws from there.
        partner: whether it is a view of the image's partner (`ssl_core.data.Batches`) and not of the image itself.

    Raises:
        ValueError: for ops that do not fit together or do not fit the sizes.

    Example:
        >>> from ssl_core.views import HorizontalFlip, RandomResizedCrop
        >>> view = ViewSpec((RandomResizedCrop(scale=(0.2, 1.0)), HorizontalFlip()), (32,), name="weak")
        >>> parameter_names(view)[-2:]
        ('random_resized_crop.width', 'horizontal_flip.flip')
    """

    ops: tuple[ViewOp, ...]
    sizes: tuple[int, ...]
    name: str = ""
    derived_from: int | None = None
    shared_ops: int = 0
    partner: bool = False

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1 or len(set(self.sizes)) < len(self.sizes):
            raise ValueError(f"view {self.name!r}: sizes must be different pixel counts >= 1, got {self.sizes}")
        framing = [op for op in self.ops if isinstance(op, Framing)]
        if not framing or any(framing[-1].side_after(size) != size for size in self.sizes):
            raise ValueError(
                f"view {self.name!r}: its ops do not end at the view's size {self.sizes}: "
                "add random_resized_crop, random_crop, center_crop or resize"
            )
        if len(self.sizes) > 1 and len(framing) > 1:
            raise ValueError(
                f"view {self.name!r}: several sizes {self.sizes} need one geometric op that resizes, got "
                f"{len(framing)}: make one view for each size"
            )
        sides: tuple[int, ...] = ()
        for op in self.ops:
            if isinstance(op, Placed) and (misfit := op.misfit(sides, self.sizes)):
                raise ValueError(f"view {self.name!r}: {misfit}")
            if isinstance(op, Framing):
                sides = tuple(op.side_after(size) for size in self.sizes)
        if (self.derived_from is None) != (self.shared_ops == 0) or self.shared_ops > len(self.ops):
            raise ValueError(
                f"view {self.name!r}: derived_from {self.derived_from} with shared_ops {self.shared_ops} of "
                f"{len(self.ops)} ops: build derived views with ssl_core.views.derive"
            )


def derive(
    specs: Sequence[ViewSpec],
    parent: int,
    ops: Sequence[ViewOp],
    *,
    shared_ops: int | None = None,
    sizes: tuple[int, ...] | None = None,
    name: str = "",
) -> ViewSpec:
    """A view that continues an earlier one: the parent's first ops with the parent's draws, then ``ops``.

    At the parent's size the result is the parent's own picture (if all its ops are shared) with ``ops``
    applied to it; at another size it is the same box and colors at that resolution.

    Args:
        specs: earlier views, in the order of their indices.
        parent: index into ``specs`` of a view that is not itself derived.
        ops: operations that follow, with draws of their own.
        shared_ops: number of the parent's ops to take; None is all. 1 shares the crop and nothing else.
        sizes: sides of the new view, in pixels; None is the parent's.
        name: name of the new view.

    Raises:
        ValueError: if the parent does not exist or is derived itself.

    Example:
        >>> from ssl_core.views import HorizontalFlip, RandomResizedCrop, Solarize
        >>> standard = ViewSpec((RandomResizedCrop(), HorizontalFlip()), (32,))
        >>> [op.name for op in derive([standard], 0, [Solarize(prob=1.0)]).ops]
        ['random_resized_crop', 'horizontal_flip', 'solarize']
    """
    if not 0 <= parent < len(specs):
        raise ValueError(f"derived_from {parent} is not the index of an earlier view: there are {len(specs)}")
    if specs[parent].derived_from is not None:
        raise ValueError(f"derived_from {parent} is itself a derived view: derive from {specs[parent].derived_from}")
    shared = len(specs[parent].ops) if shared_ops is None else shared_ops
    return ViewSpec(
        ops=(*specs[parent].ops[:shared], *ops),
        sizes=specs[parent].sizes if sizes is None else sizes,
        name=name,
        derived_from=parent,
        shared_ops=shared,
        partner=specs[parent].partner,
    )


def parameter_names(spec: ViewSpec) -> tuple[str, ...]:
    """Names of the columns of a view's parameters, such as ``gaussian_blur.sigma``.

    The second op of a kind is numbered: ``solarize_2.solarize``.
    """
    return names_of(spec.ops)


def num_parameters(spec: ViewSpec) -> int:
    """Number of parameters of one image's view."""
    return sum(len(op.parameters) for op in spec.ops)


def names_of(ops: Sequence[ViewOp]) -> tuple[str, ...]:
    """Names of the parameters of ops that follow one another."""
    names: list[str] = []
    seen: dict[str, int] = {}
    for op in ops:
        seen[op.name] = seen.get(op.name, 0) + 1
        prefix = op.name if seen[op.name] == 1 else f"{op.name}_{seen[op.name]}"
        names.extend(f"{prefix}.{parameter}" for parameter in op.parameters)
    return tuple(names)
