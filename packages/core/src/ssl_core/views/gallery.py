"""A picture of views beside their originals, for a person to see as an encoder does.

Command: ``ssl-core views --config FILE``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float32, Num
from PIL import Image, ImageDraw
from torch import Tensor

from ssl_core.files import write_atomically
from ssl_core.views.images import to_unit
from ssl_core.views.render import render
from ssl_core.views.sampling import sample_parameters
from ssl_core.views.spec import ViewSpec

_GAP = 6
_HEADER = 32  # two lines of text
_SMALLEST_CELL = 96  # a label's width


@runtime_checkable
class Images(Protocol):
    """The part of an image source that a gallery needs."""

    def __len__(self) -> int:
        """Number of images."""

    def image(self, index: int) -> Num[Tensor, "c h w"]:
        """Pixels of an image."""


def view_gallery(
    images: Sequence[Num[Tensor, "c _ _"]],
    specs: Sequence[ViewSpec],
    *,
    seed: int = 0,
    epoch: int = 0,
    image_index: Sequence[int] | None = None,
) -> Image.Image:
    """A sheet with one row for each image: the original, then its views at one common scale.

    Of images with more than three channels the first three are shown, of two channels their mean. A view of an
    image's partner is rendered from the image itself: who is whose partner is known to a training run alone.

    Args:
        images: images of any sizes, uint8, uint16 or floating in [0, 1].
        specs: views of each image; a view of several sizes takes several columns.
        seed: seed of the run whose views are shown.
        epoch: epoch of that run.
        image_index: index of each image in its data set; None numbers them from 0.

    Raises:
        ValueError: if there is no image or no view.

    Example:
        >>> from ssl_core.views import ViewConfig, make_view_specs
        >>> specs = make_view_specs([ViewConfig("weak", size=32, count=2)])
        >>> view_gallery([torch.rand(1, 40, 30)], specs).size
        (312, 140)
    """
    if not images or not specs:
        raise ValueError(f"a gallery needs an image and a view, got {len(images)} images and {len(specs)} views")
    index = torch.arange(len(images)) if image_index is None else torch.tensor(list(image_index))
    image_size = torch.tensor([image.shape[1:] for image in images])
    largest = max(size for spec in specs for size in spec.sizes)
    zoom = max(1, _SMALLEST_CELL // largest)
    cell = max(_SMALLEST_CELL, largest)

    columns = [("original", [_fitted(image, cell) for image in images])]
    for view_index, spec in enumerate(specs):
        parameters = sample_parameters(
            spec, seed=seed, epoch=epoch, image_index=index, view_index=view_index, image_size=image_size
        )
        # One image at a time: the images of a folder may differ in their channels.
        rows = [render(image, row, spec) for image, row in zip(images, parameters, strict=True)]
        parent = "" if spec.derived_from is None else f" from {spec.derived_from}"
        partner = " (partner)" if spec.partner else ""
        for size, views in zip(spec.sizes, zip(*rows, strict=True), strict=True):
            side = size * zoom
            pictures = [to_picture(view).resize((side, side), Image.Resampling.NEAREST) for view in views]
            columns.append((f"{view_index}: {spec.name}{parent}{partner}\n{size} px", pictures))

    widths = [max(_SMALLEST_CELL, *(picture.width for picture in pictures)) for _, pictures in columns]
    sheet_size = (_GAP + sum(widths) + _GAP * len(widths), _GAP + _HEADER + len(images) * (cell + _GAP))
    sheet = Image.new("RGB", sheet_size, "white")
    draw = ImageDraw.Draw(sheet)
    left = _GAP
    for (label, pictures), width in zip(columns, widths, strict=True):
        draw.multiline_text((left, _GAP), label, fill="black")
        for row, picture in enumerate(pictures):
            sheet.paste(picture, (left, _GAP + _HEADER + row * (cell + _GAP)))
        left += width + _GAP
    return sheet


def save_view_gallery(
    source: Images,
    specs: Sequence[ViewSpec],
    path: str | Path,
    *,
    num_images: int = 8,
    seed: int = 0,
    epoch: int = 0,
) -> None:
    """Write `view_gallery` of images spread evenly over a source, with training's own draws, as PNG.

    Args:
        source: source of the images.
        specs: views of each image.
        path: file of the PNG, in a folder that exists.
        num_images: number of rows; fewer if the source has fewer images.
        seed: seed of the run whose views are shown.
        epoch: epoch of that run.

    Raises:
        FileNotFoundError: if the folder of ``path`` does not exist.
        ValueError: if there is no image or no view.
    """
    num_rows = min(num_images, len(source))
    chosen = [row * len(source) // num_rows for row in range(num_rows)]
    images = [source.image(index) for index in chosen]
    picture = view_gallery(images, specs, seed=seed, epoch=epoch, image_index=chosen)
    write_atomically(Path(path), lambda file: picture.save(file, format="PNG"))


def _fitted(image: Num[Tensor, "c h w"], cell: int) -> Image.Image:
    """The whole image, its long side at the cell's, so that small ones show their pixels."""
    _, height, width = image.shape
    scale = cell / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    if scale > 1:
        fitted = F.interpolate(to_unit(image)[None], size=size, mode="nearest")
    else:
        fitted = F.interpolate(to_unit(image)[None], size=size, mode="bilinear", antialias=True)
    return to_picture(fitted[0])


def to_picture(view: Float32[Tensor, "c h w"]) -> Image.Image:
    """An image in [0, 1] for a person: of one or two channels their mean in gray, of more than three the first three.

    Example:
        >>> to_picture(torch.rand(5, 8, 6)).size
        (6, 8)
    """
    if len(view) < 3:
        view = view.mean(dim=0, keepdim=True).expand(3, -1, -1)
    levels = (view[:3] * 255).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())
