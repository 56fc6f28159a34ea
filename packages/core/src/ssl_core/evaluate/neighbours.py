"""A picture of nearest neighbors: the images that an encoder takes for alike, beside those of chance and of pixels.

It has one row for each query, and one block of columns for each way of comparing. A frame is green where the neighbor
has the query's label, red where it has not, and gray where labels are missing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ssl_core.data import DataConfig, ImageSource, open_source
from ssl_core.data.source import readable
from ssl_core.evaluate.encoder import run_data
from ssl_core.evaluate.features import evaluation_view
from ssl_core.evaluate.knn import nearest
from ssl_core.evaluate.subject import load_subject
from ssl_core.files import write_atomically
from ssl_core.views import render, sample_parameters

_SIDE, _FRAME, _GAP, _BLOCK_GAP, _LINE = 64, 4, 4, 20, 20  # pixels
_SAME, _OTHER, _UNKNOWN = (26, 152, 80), (215, 48, 39), (150, 150, 150)


def choose_queries(labels: Int64[Tensor, " n"], rows: int) -> list[int]:
    """Images to show, without looking at what comes out: the first of each class, then the second, and so on.

    Without labels, images evenly spaced.

    Example:
        >>> choose_queries(torch.tensor([1, 1, 0, 2, 0]), 4)
        [2, 0, 3, 4]
    """
    if (labels < 0).all():
        return torch.linspace(0, len(labels) - 1, min(rows, len(labels))).round().long().tolist()
    seen: dict[int, int] = {}
    order = []
    for index, label in enumerate(labels.tolist()):
        order.append((seen.get(label, 0), label, index))
        seen[label] = seen.get(label, 0) + 1
    return [index for _, label, index in sorted(order) if label >= 0][:rows]


def neighbour_picture(
    train: ImageSource,
    test: ImageSource,
    queries: Sequence[int],
    blocks: Mapping[str, tuple[Float[Tensor, "m _"], Float[Tensor, "n _"]]],
    *,
    image_size: int,
    k: int = 6,
    caption: str = "",
) -> Image.Image:
    """A picture of the nearest training images of some test images.

    Args:
        train: images to choose from.
        test: images that hold the queries.
        queries: n indices of the queries in ``test``, each of which has a row.
        blocks: features of the m readable images of ``train`` and of the queries, by title.
        image_size: side of the encoder's input, pixels; images are shown as the encoder sees them.
        k: number of neighbors in a block.
        caption: line above the picture.

    Raises:
        ValueError: if k is beyond the training images.
    """
    banked = readable(train)
    cell, label_query = _SIDE + 2 * _FRAME, [test.label(index) for index in queries]
    block_width = k * (cell + _GAP) - _GAP
    width = _GAP + cell + len(blocks) * (_BLOCK_GAP + block_width) + _GAP
    top = _GAP + 2 * _LINE
    height = top + len(queries) * (cell + _GAP) + _LINE
    picture = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    draw.text((_GAP, _GAP), caption, "black", font)
    draw.text((_GAP, _GAP + _LINE), "query", "black", font)
    for row, query in enumerate(queries):
        picture.paste(_framed(test, query, image_size, "white"), (_GAP, top + row * (cell + _GAP)))

    for block, (title, (bank, query_features)) in enumerate(blocks.items()):
        left = _GAP + cell + _BLOCK_GAP + block * (block_width + _BLOCK_GAP)
        index = [[banked[row] for row in rows] for rows in nearest(bank, query_features, k)[1].tolist()]
        colors = [
            [_color(label, train.label(neighbour)) for neighbour in neighbours]
            for label, neighbours in zip(label_query, index, strict=True)
        ]
        same = sum(color == _SAME for row_colors in colors for color in row_colors)
        known = sum(color != _UNKNOWN for row_colors in colors for color in row_colors)
        draw.text(
            (left, _GAP + _LINE), f"{title}: {same} of {known} of the same class" if known else title, "black", font
        )
        for row, neighbours in enumerate(index):
            for column, neighbour in enumerate(neighbours):
                tile = _framed(train, neighbour, image_size, colors[row][column])
                picture.paste(tile, (left + column * (cell + _GAP), top + row * (cell + _GAP)))
    legend = (
        "green frame: same class as the query, red: another class, gray: unknown; nearest first, cosine of features"
    )
    draw.text((_GAP, height - _LINE), legend, "black", font)
    return picture


def _color(query_label: int, label: int) -> tuple[int, int, int]:
    if query_label < 0 or label < 0:
        return _UNKNOWN
    return _SAME if query_label == label else _OTHER


def _framed(source: ImageSource, index: int, image_size: int, color: str | tuple[int, int, int]) -> Image.Image:
    """An image as the encoder sees it, in a colored frame."""
    image = source.image(index)
    view = evaluation_view(min(image_size, _SIDE))
    parameters = sample_parameters(
        view,
        seed=0,
        epoch=0,
        image_index=torch.tensor([0]),
        view_index=0,
        image_size=torch.tensor([image.shape[1:]]),
    )
    (pixels,) = render(image, parameters[0], view)
    # One or two channels are shown as gray, of more than three the first three.
    pixels = pixels[:3] if len(pixels) >= 3 else pixels.mean(dim=0, keepdim=True).expand(3, -1, -1)
    levels = (pixels * 255).round().byte().permute(1, 2, 0).contiguous()
    shown = Image.fromarray(levels.numpy()).resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
    framed = Image.new("RGB", (_SIDE + 2 * _FRAME,) * 2, color)
    framed.paste(shown, (_FRAME, _FRAME))
    return framed


def draw_neighbours(
    encoder: str,
    out: str,
    *,
    data: DataConfig | None = None,
    rows: int = 10,
    k: int = 6,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Write a PNG of the nearest training images of some test images: by the encoder, a random one, and pixels.

    Args:
        encoder: run directory or exported backbone.
        out: file of the PNG, in a folder that exists.
        data: images to compare; None takes the run's.
        rows: number of queries, chosen by :func:`choose_queries`.
        k: number of neighbors of each query.
        device: device that computes the features.
        seed: seed of the weights of the random encoder.
        progress: whether bars are shown.

    Returns:
        Path of the file.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for what does not fit together.
    """
    path = Path(out)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} to")
    data = data or run_data(encoder)
    train, test = (open_source(data, split=split) for split in ("labelled", "test"))
    blocks = {}
    for title, spec, like in (("trained", encoder, None), ("random", "random", encoder), ("pixels", "pixels", encoder)):
        subject = load_subject(spec, data=data, like=like, device=device, seed=seed)
        bank, tested = (subject.extract(source, title if progress else "") for source in (train, test))
        shown = choose_queries(tested.labels, rows)
        blocks[f"{title} encoder" if title != "pixels" else title] = (bank.features, tested.features[shown])
    there = readable(test)
    queries = [there[row] for row in shown]
    caption = f"{encoder}: nearest of {len(bank.labels)} training images to {len(queries)} test images of {test.name}"
    picture = neighbour_picture(train, test, queries, blocks, image_size=subject.card.image_size, k=k, caption=caption)
    write_atomically(path, lambda file: picture.save(file, format="PNG"))
    print(f"wrote {path}")
    return path
