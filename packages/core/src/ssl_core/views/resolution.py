"""Number of an image's pixels that views need, so that a decoder can leave out the others."""

import math
from collections.abc import Sequence

from ssl_core.views.ops import CenterCrop, RandomResizedCrop, Resize
from ssl_core.views.spec import ViewSpec


def shortest_side(specs: Sequence[ViewSpec]) -> int | None:
    """The short side that an image needs for no view of it to be enlarged; None if a view depends on its every pixel.

    A random resized crop of an image whose short side is s has an area of ``scale[0]`` s^2 or more, so sides of
    s sqrt(scale[0] min(ratio[0], 1 / ratio[1])) or more. A view whose first op is none of random_resized_crop,
    center_crop and resize measures in the image's own pixels.

    Example:
        >>> shortest_side([ViewSpec((RandomResizedCrop(scale=(0.2, 1.0)),), (224,))])
        579
    """
    needed = [_shortest_side(spec) for spec in specs]
    known = [side for side in needed if side is not None]
    return max(known) if known and len(known) == len(needed) else None


def _shortest_side(spec: ViewSpec) -> int | None:
    size = max(spec.sizes)
    match spec.ops[0]:
        case RandomResizedCrop(scale=(least, _), ratio=(narrow, wide)):
            # Where no sampled box fits, it is the largest central one of an allowed ratio.
            fraction = min(math.sqrt(least * min(narrow, 1 / wide)), 1, wide, 1 / narrow)
            return math.ceil(size / fraction)
        case CenterCrop(short_side=side) | Resize(side=side):
            return side or size
        case _:
            return None
