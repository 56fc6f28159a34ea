"""The partially ordered views: standard ones, and heavier ones that come from them."""

from collections.abc import Sequence
from typing import Literal

from ssl_core.views import Resize, ViewOp, ViewSpec, derive


def heavier(view: ViewSpec, heavy: Sequence[ViewOp]) -> ViewSpec:
    """A view with the heavy augmentations after its own, and random numbers that it shares with no other.

    It is t^(t(I)). If every view is made like this, that is the "naive" way to add heavy augmentations.
    """
    return ViewSpec((*view.ops, *heavy), view.sizes, f"{view.name}, heavy")


def partially_ordered_views(
    standard: Sequence[ViewSpec],
    heavy: Sequence[ViewOp],
    *,
    source: Literal["derived", "image", "independent"] = "derived",
    sources: Sequence[int] = (0, 1),
) -> tuple[ViewSpec, ...]:
    """The standard views v = t(I), and after them a heavy view for each of ``sources``.

    Paper: Bai et al., 2022, eq. (3), 2110.13555: v^ = t^(v), ``derived`` from the very picture v. The paper's Algorithm
    1 makes heavy views of the whole ``image``, t^(I), resized to the view's size. ``independent`` is t^(t''(I)), made
    of a standard view that nothing else sees.

    Args:
        standard: standard views, each with its t.
        heavy: operations of t^, in order.
        source: origin of a heavy view.
        sources: standard view that each heavy view belongs to.

    Example:
        >>> from ssl_core.views import HorizontalFlip, RandomResizedCrop, Solarize
        >>> standard = [ViewSpec((RandomResizedCrop(), HorizontalFlip()), (32,), "flipped")] * 2
        >>> views = partially_ordered_views(standard, [Solarize()])
        >>> [(view.name, view.derived_from) for view in views]
        [('flipped', None), ('flipped', None), ('flipped, heavy', 0), ('flipped, heavy', 1)]
    """
    views = list(standard)
    for index in sources:
        view = standard[index]
        name = f"{view.name}, heavy"
        match source:
            case "derived":
                views.append(derive(standard, index, heavy, name=name))
            case "image":
                views.append(ViewSpec((Resize(), *heavy), view.sizes, f"{name}, of the image"))
            case "independent":
                views.append(heavier(view, heavy))
    return tuple(views)
