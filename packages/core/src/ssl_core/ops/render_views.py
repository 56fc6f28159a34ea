"""Views of packed images: a few instructions for each view, and a row of parameters for each image.

What an instruction does is defined by the op of `ssl_core.views` that gives it; here it is numbers only. A view is a
program of instructions that run one after the other on each image's picture, float32 in [0, 1]; what follows the last
one is normalization, (x - mean) / std, and rounding to the result's dtype.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ssl_core.ops import _triton, cpp
from ssl_core.ops.backends import Unsupported, choose_backend, log_choice, runs_anywhere
from ssl_core.ops.instructions import PIXEL_DTYPES, VIEW_DTYPES, Opcode, PackedImages, View, num_parameters_of, numbered

# Fastest first. The reference, `ssl_core.views.render`, reads specs and not programs, and is not called from here.
BACKENDS: dict[str, Unsupported] = {
    "cpp": cpp.cannot_render,
    "triton": _triton.cannot_render,
    "reference": runs_anywhere,
}


def render_views(
    images: PackedImages,
    views: Sequence[View],
    *,
    mean: Float[Tensor, " c"],
    std: Float[Tensor, " c"],
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    backend: str | None = None,
) -> tuple[Float[Tensor, "n c _ _"], ...]:
    """Render views of images: what `ssl_core.views.render` renders, all views of an image together, then normalized.

    Specs are made into programs by `ssl_core.views.render_views`, which is what to call. There is no gradient.

    Args:
        images: n images, on the CPU or a GPU.
        views: instructions, parameters and size of each view.
        mean: (c) number that is subtracted from each channel's pixels in [0, 1].
        std: (c) number that each channel's difference from ``mean`` is divided by.
        dtype: dtype of the views: float32, float16 or bfloat16.
        channels_last: whether views have their channels last in memory.
        backend: name of a back-end, ``cpp`` or ``triton``; None chooses, see `ssl_core.ops.implementations`.

    Returns:
        One (n c s s) tensor for each view.

    Raises:
        TypeError: for pixels or views of another dtype.
        ValueError: if shapes or devices disagree, an image does not lie in ``pixels``, a program reads parameters that
            are not there, does not end at the view's size or has an unknown opcode, parameters hold an unknown
            distortion, or the back-end cannot run here or has no kernel of an opcode.
    """
    if not views:
        return ()
    device = images.pixels.device
    if images.pixels.dtype not in PIXEL_DTYPES:
        raise TypeError(f"pixels must be uint8, uint16 or float32, got {images.pixels.dtype}: convert them first")
    if dtype not in VIEW_DTYPES:
        raise TypeError(f"views are float32, float16 or bfloat16, got {dtype}")
    if not len(mean) == len(std) == images.channels:
        raise ValueError(f"{len(mean)} means and {len(std)} deviations for images of {images.channels} channels")
    for index, view in enumerate(views):
        if len(view.parameters) != len(images.layout) or view.parameters.device != device:
            raise ValueError(
                f"view {index}: parameters of {len(view.parameters)} images on {view.parameters.device}, but there are "
                f"{len(images.layout)} on {device}"
            )
        if view.continues >= index or (view.continues >= 0 and views[view.continues].size != view.size):
            raise ValueError(
                f"view {index} cannot continue view {view.continues}: it must be earlier, of the same size"
            )
        _check_program(index, view)
    programmable = {name: unsupported for name, unsupported in BACKENDS.items() if name != "reference"}
    opcodes = {numbered(Opcode, number) for view in views for number in view.instructions[:, 0].tolist()}
    name = choose_backend("render_views", programmable, device, images.pixels.dtype, requested=backend, opcodes=opcodes)
    log_choice("render_views", tuple(programmable.items()), name, device, images.pixels.dtype)
    results = tuple(
        torch.empty(
            (len(images.layout), images.channels, view.size, view.size),
            dtype=dtype,
            device=device,
            memory_format=torch.channels_last if channels_last else torch.contiguous_format,
        )
        for view in views
    )
    if name == "cpp":
        cpp.render_views(images, views, mean, std, results)
    else:
        from ssl_core.ops._triton.render_views import render_views as render

        render(images, views, mean, std, results)
    return results


def _check_program(index: int, view: View) -> None:
    """Check that instructions read parameters that are there and leave a picture of the view's size."""
    num_parameters = view.parameters.shape[1]
    has_size = view.continues >= 0
    for number, column, a, _, _, condition, _ in view.instructions.tolist():
        opcode = numbered(Opcode, number)
        count = num_parameters_of(opcode, int(a))
        if (count and not 0 <= column <= num_parameters - count) or condition >= num_parameters:
            raise ValueError(
                f"view {index}: {opcode.name} reads {count} parameters from column {column:g} on and its condition in "
                f"column {condition:g}, but there are {num_parameters}"
            )
        if opcode <= Opcode.RESIZE:
            if condition >= 0:
                raise ValueError(f"view {index}: {opcode.name} changes a picture's size and takes no condition")
            has_size = opcode != Opcode.RESIZE or a in (0, view.size)
    if not has_size:
        raise ValueError(f"view {index}: its instructions do not end at its size of {view.size} pixels")
