"""A picture of the feature space: t-SNE of the same test images by several encoders, a panel for each.

t-SNE keeps close what is close among the features; sizes of groups and distances between them mean nothing.
Papers: van der Maaten and Hinton, 2008 (t-SNE); CLIM, ICLR 2021 submission, Figure 3, which shows ten random classes
of ImageNet's validation set by MoCo, CLIM and a supervised encoder side by side.
"""

import math
import textwrap
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from ssl_core import distributed
from ssl_core.data import DataConfig, ImageSource, MemoryImages, open_source
from ssl_core.data.source import readable
from ssl_core.evaluate.accuracy import check_labels, count_classes
from ssl_core.evaluate.encoder import Layer, check_channels, load_encoders, shared_data
from ssl_core.evaluate.similarity import inter_class_similarity, intra_class_similarity
from ssl_core.evaluate.subject import Subject
from ssl_core.files import check_file, write_atomically
from ssl_core.philox import permutation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CLASS_STREAM, _IMAGE_STREAM, _DRAWING_STREAM = ((0x74736E65, purpose) for purpose in range(3))  # "tsne"
# Chosen so that people with a color vision deficiency can tell them apart: Petroff, 2021, arXiv 2107.02270. Colors
# close to each other, such as the two grays, differ in their marker as well.
COLORS = ["#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"]
_MARKERS = "o^"
MOST_CLASSES = len(COLORS)
MOST_TSNE, LEAST_TSNE, PERPLEXITY = 5000, 10, 30.0  # images of a map; 5,000 take a minute
_COLUMNS = 4  # panels in a row
_PANEL, _LEGEND, _TITLE, _CAPTION = 3.2, 1.6, 0.4, 0.3  # inches
_NAME_LENGTH = 24  # characters


def check_plot() -> None:
    """Find matplotlib before any work is done that only it can show.

    Raises:
        ImportError: if it is not installed.
    """
    if find_spec("matplotlib") is None:
        raise ImportError('matplotlib, which plots, is not installed: pip install "ssl-core[plot]"')


def choose_images(
    labels: Int64[Tensor, " n"], *, classes: int, images_per_class: int, seed: int
) -> Int64[Tensor, " m"]:
    """Random images of random classes; of what there is less of, all.

    Args:
        labels: (n) class of each image, -1 where unknown.
        classes: number of classes to choose among those of two images or more.
        images_per_class: largest number of images of one class.
        seed: seed of both choices.

    Returns:
        (m) indices, ascending.

    Raises:
        ValueError: if fewer than two classes have two images.

    Example:
        >>> choose_images(torch.tensor([0, 2, 2, 1, 0, 2]), classes=5, images_per_class=3, seed=0)
        tensor([0, 1, 2, 4, 5])
    """
    there = (labels[labels >= 0].bincount() >= 2).nonzero().flatten()
    if len(there) < 2:
        raise ValueError(
            f"{len(there)} of the classes of {len(labels)} test images have two images or more; a comparison needs two"
        )
    chosen = there[permutation(seed, _CLASS_STREAM, len(there))[:classes]]
    order = permutation(seed, _IMAGE_STREAM, len(labels))
    return torch.cat([order[labels[order] == label][:images_per_class] for label in chosen]).sort().values


def tsne_points(features: Float[Tensor, "n f"], *, perplexity: float, seed: int) -> Float32[Tensor, "n 2"]:
    """t-SNE of l2-normalized features in the plane, from their principal components on; scikit-learn's.

    Args:
        features: (n f) features, on the CPU; normalized here, so that near means of large cosine.
        perplexity: number of neighbors that each image is to keep close, about; > 0 and < n.
        seed: seed of the principal components, which are found by chance where there is much data.

    Returns:
        (n 2) points, on one machine always the same.

    Raises:
        ValueError: if all features are the same.
    """
    from sklearn.manifold import TSNE  # seconds of import that no other evaluation needs
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it has none

    unit = F.normalize(features.float(), dim=1)
    # From equal rows scikit-learn starts at 0 / 0, which ends the process.
    if (unit == unit[0]).all():
        raise ValueError(f"the features of {len(unit)} images are all the same: the encoder has collapsed")
    solver = TSNE(perplexity=perplexity, random_state=seed)  # type: ignore[no-untyped-call]  # scikit-learn's
    # Sums of threads end in other last bits, and these decide where a point ends.
    with threadpool_limits(limits=1):
        return torch.from_numpy(solver.fit_transform(unit.numpy()))


def plane_points(features: Float[Tensor, "n f"], *, seed: int) -> tuple[Float32[Tensor, "n 2"], str]:
    """Points of images in the plane by t-SNE, or by PCA where t-SNE takes long or has nothing to go by.

    Args:
        features: (n f) features, on the CPU.
        seed: seed of t-SNE.

    Returns:
        (n 2) points, and in words how they were found.
    """
    if len(features) > MOST_TSNE:
        return pca_points(features), f"PCA, of more than {MOST_TSNE:,} images"
    if len(features) < LEAST_TSNE:
        return pca_points(features), f"PCA, of less than {LEAST_TSNE} images"
    if (features == features[0]).all():
        return pca_points(features), "PCA, of features that are all the same"
    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    return tsne_points(features, perplexity=perplexity, seed=seed), f"t-SNE, perplexity {perplexity:.3g}"


def pca_points(features: Float[Tensor, "n f"]) -> Float32[Tensor, "n 2"]:
    """The first two principal components of l2-normalized features.

    Their signs are such that the first of each one's large weights, of half the largest or more, is positive; that of
    the largest itself would be up to rounding where two are equal.

    Example:
        >>> pca_points(torch.tensor([[2.0, 0.0], [0.0, 3.0], [0.0, 1.0]])).round(decimals=2)
        tensor([[ 0.9400,  0.0000],
                [-0.4700,  0.0000],
                [-0.4700,  0.0000]])
    """
    unit = F.normalize(features.double(), dim=1)
    centered = unit - unit.mean(dim=0)
    axes: Tensor = torch.linalg.eigh(centered.T @ centered).eigenvectors[:, -2:].flip(1)  # (f 2), f > 1
    is_large = axes.abs() >= axes.abs().amax(dim=0) / 2
    first = axes.gather(0, is_large.int().argmax(dim=0, keepdim=True))
    return (centered @ (axes * first.sign())).float()


def tsne_picture(
    panels: Sequence[tuple[str, Float32[Tensor, "n 2"]]],
    labels: Int64[Tensor, " n"],
    names: Sequence[str],
    *,
    caption: str = "",
) -> "Figure":
    """A plot of points in the colors of their classes, side by side, with one legend.

    Args:
        panels: title of each panel, and the points of the same images in it.
        labels: (n) class of each image, of at most ten classes.
        names: names of all classes, by label.
        caption: line below the picture.

    Returns:
        A figure, to be saved with its ``savefig``.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    columns, rows = min(len(panels), _COLUMNS), math.ceil(len(panels) / _COLUMNS)
    width, height = columns * _PANEL + _LEGEND, rows * (_PANEL + _TITLE) + _CAPTION
    figure = Figure((width, height), dpi=200, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    shown = labels.bincount().nonzero().flatten()
    # In a random order, or the last class would lie on top of the others.
    order = permutation(0, _DRAWING_STREAM, len(labels))
    rank = torch.searchsorted(shown, labels[order])
    for axes, (title, points) in zip(grid, panels, strict=False):
        for shape, marker in enumerate(_MARKERS):
            drawn = rank % len(_MARKERS) == shape
            colors = [COLORS[index] for index in rank[drawn].tolist()]
            axes.scatter(*points[order][drawn].T.numpy(), s=7, c=colors, marker=marker, linewidths=0)
        axes.set_title(title, fontsize=9, parse_math=False)
        # The plane of t-SNE has no directions and no unit, but one scale.
        axes.set(xticks=[], yticks=[])
        axes.set_aspect("equal", adjustable="datalim")
        axes.spines[:].set_color("0.8")
    for axes in grid[len(panels) :]:
        axes.remove()
    entries = [
        Line2D([], [], linestyle="", marker=_MARKERS[index % len(_MARKERS)], color=COLORS[index])
        for index in range(len(shown))
    ]
    classes = [shortened(names[label]) for label in shown.tolist()]
    legend = figure.legend(entries, classes, loc="outside right center", frameon=False, fontsize=9, handletextpad=0)
    for text in legend.get_texts():
        text.set_parse_math(False)
    figure.supxlabel(textwrap.fill(caption, int(16 * width)), fontsize=8, color="0.3", parse_math=False)
    return figure


def shortened(name: str) -> str:
    """The name of a class as plots show it, of 24 characters at most."""
    return name if len(name) <= _NAME_LENGTH else f"{name[: _NAME_LENGTH - 3]}..."


def draw_tsne(
    encoders: Sequence[str],
    *,
    out: str = "tsne.png",
    classes: int = 10,
    images_per_class: int = 100,
    perplexity: float = 30.0,
    data: DataConfig | None = None,
    like: str | None = None,
    features: Layer = "backbone",
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Plot t-SNE of the same test images by one or more encoders, side by side, as a PNG.

    Features are l2-normalized, so near means of large cosine; above each panel stands the mean cosine within and
    between classes of the images shown.

    Args:
        encoders: encoders to compare, each a run directory, a ``.safetensors`` file, ``timm:NAME``, ``random`` or
            ``pixels``.
        out: file of the PNG, in a folder that exists.
        classes: number of random classes, 2 to 10; all where there are no more.
        images_per_class: number of random test images of each class; all where there are no more.
        perplexity: number of neighbors that each image is to keep close, about.
        data: labeled images; None takes those of the runs among ``encoders`` and ``like``, if they agree.
        like: run directory or exported backbone whose input ``random`` and ``pixels`` take; None is the first among
            ``encoders``.
        features: layer to evaluate: ``backbone``, or ``projection``, the projector after it.
        device: device that computes the features.
        seed: seed of the choice of classes and images, of t-SNE, and of the weights of ``random``.
        progress: whether bars are shown.

    Returns:
        Path of the file.

    Raises:
        FileNotFoundError: for a path that does not exist, the folder of ``out`` among them.
        OSError: if ``out`` cannot be written.
        ImportError: if matplotlib is not installed.
        ValueError: for another suffix, settings out of range, runs on different data, missing labels, and what does
            not fit together.
    """
    path = Path(out)
    check_plot()
    if path.suffix != ".png":
        raise ValueError(f"the picture is written as .png, not {out!r}")
    check_file(path)
    if not 2 <= classes <= MOST_CLASSES:
        raise ValueError(f"classes must be 2 to {MOST_CLASSES}, as many as colors can tell apart, got {classes}")
    if images_per_class < 2:
        raise ValueError(f"images_per_class must be at least 2, got {images_per_class}")
    loaded = load_encoders(encoders, like=like, features=features, seed=seed)
    check_channels({encoder: card for encoder, (_, card) in zip(encoders, loaded, strict=True)})
    data = data or shared_data(encoders, like)
    test = open_source(data, split="test")
    shown = _random_images(test, classes, images_per_class, seed)
    if not 0 < perplexity < len(shown):
        raise ValueError(f"perplexity must be positive and below the {len(shown)} images shown, got {perplexity:g}")

    names = {each: Path(each).resolve().name if Path(each).exists() else each for each in encoders}
    found = [
        Subject(each, module.to(device), card, data, device).together(shown, names[each] if progress else "")
        for each, (module, card) in zip(encoders, loaded, strict=True)
    ]
    points = distributed.shared_out(found, lambda each: tsne_points(each.features, perplexity=perplexity, seed=seed))
    if not distributed.is_main():
        return path
    panels = []
    for encoder, features_of, places in zip(encoders, found, points, strict=True):
        intra, inter = (
            mean(*features_of, count_classes(test)) for mean in (intra_class_similarity, inter_class_similarity)
        )
        print(f"{encoder}: similarity intra-class {intra:.3f} inter-class {inter:.3f}")
        title = f"{textwrap.fill(names[encoder], 40)}\nintra-class {intra:.2f}, inter-class {inter:.2f}"
        panels.append((title, places))
    num_classes = int((shown.labels.bincount() > 0).sum())
    of = f"{len(shown)} test images, {num_classes} classes"
    how = f"t-SNE of l2-normalized {features} features, perplexity {perplexity:g}, seed {seed}"
    source = "/".join(Path(test.name).parts[-2:])  # a picture travels farther than a path
    classes_shown = test.classes or [str(label) for label in range(count_classes(test))]
    caption = f"{source}, {of}; {how}; above: mean cosine of pairs"
    figure = tsne_picture(panels, shown.labels, classes_shown, caption=caption)
    write_atomically(path, lambda file: figure.savefig(file, format="png"))
    print(f"wrote {path}: {how}; {of} of {test.name}")
    return path


def _random_images(test: ImageSource, classes: int, images_per_class: int, seed: int) -> MemoryImages:
    """The images of :func:`choose_images`, read once for all encoders."""
    labels = torch.tensor([test.label(index) for index in range(len(test))])
    check_labels(labels, count_classes(test), "test")
    chosen = choose_images(labels, classes=classes, images_per_class=images_per_class, seed=seed)
    images = {index: test.image(index) for index in chosen.tolist()}
    there = set(readable(test))  # in place of a broken image stands the next one
    kept = [index for index in images if index in there]
    identifiers = [test.identifier(index) for index in kept]
    return MemoryImages(test.name, [images[index] for index in kept], labels[kept], test.classes, identifiers)
