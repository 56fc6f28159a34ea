"""Features of a source in a file, for whatever else reads them: ``ssl-core embed``.

A parquet file may have what viewers of images take besides: a place in the plane, nearest neighbors as embedding-atlas
reads them, zero-based rows with their distances, and small images as Hugging Face's datasets hold them, bytes and path.
"""

import io
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from pyarrow import lib as arrow
from pyarrow.parquet import write_table
from torch import Tensor, nn

from ssl_core import distributed
from ssl_core.data import DataConfig, ImageSource, open_source
from ssl_core.data.source import readable
from ssl_core.evaluate.encoder import Layer
from ssl_core.evaluate.features import BATCH, Features, evaluation_view, iterate_features, own_batches
from ssl_core.evaluate.search import EXACT, nearest_others
from ssl_core.evaluate.subject import Subject, load_subject
from ssl_core.evaluate.tsne import plane_points
from ssl_core.files import check_file, write_atomically
from ssl_core.progress import progress_bar
from ssl_core.views import to_picture

_SIDES = range(8, 513)  # of thumbnails, pixels


def embed(
    encoder: str,
    out: str,
    *,
    data: DataConfig | None = None,
    split: str = "train",
    like: str | None = None,
    features: Layer = "backbone",
    points: bool = False,
    neighbors: int = 0,
    thumbnails: int = 0,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Write the features of a source's readable images, with identifiers and labels (-1 where unknown), in its order.

    Each process that ``torchrun`` has started takes a share of the images, and the first one writes the file that one
    process alone would have written.

    Args:
        encoder: run directory, ``.safetensors`` file, ``timm:NAME``, ``random`` or ``pixels``.
        out: file that ends in ``.npz`` (arrays ``features``, ``labels``, ``identifiers``, ``classes``) or ``.parquet``
            (columns ``identifier``, ``label``, ``class``, ``features``), where a class is the name of a label.
        data: images to take; None takes those of the run that ``encoder``, or else ``like``, names.
        split: part of the data: ``train``, ``test`` or ``labelled``.
        like: run directory or exported backbone whose input ``random`` and ``pixels`` take.
        features: layer to evaluate: ``backbone``, or ``projection``, the projector after it.
        points: whether there are columns ``x`` and ``y``, by :func:`plane_points`.
        neighbors: number of nearest other images in column ``neighbors``, ids (rows from 0 on) and distances
            (1 - cosine); 0 is none.
        thumbnails: side of the images in column ``image``, JPEG as the encoder sees them, pixels; 0 is none.
        device: device that computes the features.
        seed: seed of the weights of ``random``, and of t-SNE.
        progress: whether bars are shown.

    Returns:
        Path of the file.

    Raises:
        FileNotFoundError: for a path that does not exist, the folder of ``out`` among them.
        OSError: if ``out`` cannot be written.
        ValueError: for another suffix, columns that it does not have, and for what does not fit together.
    """
    path = Path(out)
    # Before the work, which may take hours.
    if path.suffix not in (".npz", ".parquet"):
        raise ValueError(f"features are written as .npz or .parquet, not {out!r}")
    if path.suffix == ".npz" and (points or neighbors or thumbnails):
        raise ValueError(f"points, neighbors and thumbnails are columns of a .parquet file, not of {out!r}")
    if thumbnails and thumbnails not in _SIDES:
        raise ValueError(f"thumbnails must be 0, or {_SIDES[0]} to {_SIDES[-1]} pixels, got {thumbnails}")
    check_file(path)
    subject = load_subject(encoder, data=data, like=like, features=features, device=device, seed=seed)
    source = open_source(subject.data, split=split)
    if not 0 <= neighbors < len(source):
        raise ValueError(
            f"neighbors must be 0 to {len(source) - 1}, the other images of {source.name}, not {neighbors}"
        )

    found = subject.together(source, "features" if progress else "", whole="first")
    whole = readable(source)
    identifiers = [source.identifier(index) for index in whole]
    share = sorted(set(whole).intersection(own_batches(len(source))))
    own = _thumbnails(subject, source, share, thumbnails, progress=progress) if thumbnails else []
    images = [jpeg for part in distributed.gather_objects(own, everywhere=False) for jpeg in part]
    if not distributed.goes_on_alone():
        return path
    columns, remarks = dict[str, Any](), []
    if points:
        places, how = plane_points(found.features, seed=seed)
        columns |= {"x": places[:, 0].numpy(), "y": places[:, 1].numpy()}
        remarks.append(f"x and y by {how}")
    if neighbors:
        columns["neighbors"] = _neighbors(found.features, min(neighbors, len(identifiers) - 1), progress=progress)
        remarks.append(f"{neighbors} neighbors{'' if len(identifiers) <= EXACT else ' of cells of k-means'}")
    if thumbnails:
        columns["image"] = [{"bytes": jpeg, "path": f"{row}.jpg"} for row, jpeg in enumerate(images)]
        remarks.append(f"images of {thumbnails} px")
    classes = source.classes or ()
    write_atomically(path, lambda file: _write_features(file, path.suffix, found, identifiers, classes, columns))
    print("; ".join([f"wrote {len(identifiers)} features of length {found.features.shape[1]} to {path}", *remarks]))
    return path


def _thumbnails(subject: Subject, source: ImageSource, chosen: list[int], side: int, *, progress: bool) -> list[bytes]:
    """JPEG of images in the evaluation's view, a batch of pixels in memory at a time."""
    channels, jpegs = subject.card.channels, []
    batches = [chosen[start : start + BATCH] for start in range(0, len(chosen), BATCH)]
    flat, view = nn.Flatten(), evaluation_view(side)
    levels: dict[str, Any] = {"mean": (0.0,) * channels, "std": (1.0,) * channels, "workers": subject.data.workers}
    with progress_bar(len(chosen), "img", desc="thumbnails", disable=not progress) as bar:
        for pixels in iterate_features(flat, source, view, batches, device=subject.device, **levels):
            jpegs += [_jpeg(image) for image in pixels.cpu().reshape(-1, channels, side, side)]
            bar.update(len(pixels))
    return jpegs


def _jpeg(image: Tensor) -> bytes:
    file = io.BytesIO()
    to_picture(image).save(file, format="JPEG", quality=85)
    return file.getvalue()


def _neighbors(features: Tensor, k: int, *, progress: bool) -> list[dict[str, list[Any]]]:
    similarity, index = nearest_others(F.normalize(features, dim=1), k, progress="neighbors" if progress else "")
    rows = zip(similarity.tolist(), index.tolist(), strict=True)
    # Of cells of k-means there may be less.
    return [
        {
            "ids": [other for value, other in zip(values, others, strict=True) if value > -1.5],
            "distances": [max(0.0, 1 - value) for value in values if value > -1.5],
        }
        for values, others in rows
    ]


def _write_features(
    file: BinaryIO,
    suffix: str,
    found: Features,
    identifiers: list[str],
    classes: tuple[str, ...],
    columns: dict[str, Any],
) -> None:
    features, labels = found.features.numpy(), found.labels.numpy()
    if suffix == ".npz":
        names, paths = np.array(classes, dtype=np.str_), np.array(identifiers)
        np.savez(file, features=features, labels=labels, identifiers=paths, classes=names)
    else:
        rows = arrow.FixedSizeListArray.from_arrays(arrow.array(features.ravel()), features.shape[1])
        named = [classes[label] if 0 <= label < len(classes) else None for label in labels]
        known = {"identifier": identifiers, "label": labels, "class": arrow.array(named, type=arrow.string())}
        table = arrow.table({**known, "features": rows, **columns})
        write_table(table, file)  # type: ignore[no-untyped-call]  # pyarrow's is untyped
