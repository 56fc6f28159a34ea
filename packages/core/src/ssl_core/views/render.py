"""From parameters and an image to pixels: the reference renderer, which defines the picture.

One image at a time. What an op does stands in its file, ``views/ops``; ops follow one another on float32 in [0, 1]
without rounding in between, and none writes into its input.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float32, Float64, Num
from torch import Tensor

from ssl_core.views.images import check_channels, check_image, to_unit
from ssl_core.views.op import Framing, ViewOp
from ssl_core.views.spec import ViewSpec, num_parameters


def render(
    image: Num[Tensor, "c h w"], parameters: Float64[Tensor, " p"], spec: ViewSpec
) -> tuple[Float32[Tensor, "c _ _"], ...]:
    """One view of one image, at each of its sizes.

    Args:
        image: (c h w) image, uint8, uint16, or floating with values in [0, 1]; any number of channels.
        parameters: (p) row of `sample_parameters`, sampled for this image's height and width.
        spec: view that the parameters were sampled for.

    Returns:
        One (c s s) image in [0, 1] for each size of the view; they share no memory with ``image``.

    Raises:
        TypeError: for an image of another dtype.
        ValueError: for a floating image with values outside [0, 1], or if ``parameters`` is not the spec's.

    Example:
        >>> from ssl_core.views import make_view_specs, sample_parameters, ViewConfig
        >>> (spec,) = make_view_specs([ViewConfig("strong", size=32)])
        >>> image = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8)
        >>> index, size = torch.tensor([7]), torch.tensor([[40, 60]])
        >>> parameters = sample_parameters(
        ...     spec, seed=0, epoch=0, image_index=index, view_index=0, image_size=size
        ... )
        >>> [view.shape for view in render(image, parameters[0], spec)]
        [torch.Size([3, 32, 32])]
    """
    check_image(image)
    if len(parameters) != num_parameters(spec):
        raise ValueError(f"view {spec.name!r} has {num_parameters(spec)} parameters, got {len(parameters)}")
    values = parameters.tolist()
    # Rounding leaves the unit interval; the copy is a tensor of its own.
    return tuple(render_ops(spec.ops, image, values, size).contiguous().clamp(0, 1) for size in spec.sizes)


def render_batch(
    images: Sequence[Num[Tensor, "c _ _"]], parameters: Float64[Tensor, "n p"], spec: ViewSpec
) -> tuple[Float32[Tensor, "n c _ _"], ...]:
    """`render` for a batch of images of any heights and widths: one (n c s s) tensor for each size.

    Raises:
        TypeError: as `render`.
        ValueError: as `render`, and if the images differ in their number of channels.
    """
    check_channels(images)
    rows = [render(image, row, spec) for image, row in zip(images, parameters, strict=True)]
    return tuple(torch.stack(views) for views in zip(*rows, strict=True))


def render_ops(ops: Sequence[ViewOp], image: Tensor, values: Sequence[float], side: int) -> Tensor:
    """An image after ops that follow one another; arguments as of `ViewOp.render`."""
    start = 0
    for op in ops:
        stop = start + len(op.parameters)
        image = op.render(image if isinstance(op, Framing) else to_unit(image), values[start:stop], side)
        start = stop
    return image
