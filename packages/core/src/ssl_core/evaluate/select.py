"""The images to label next, by frozen features: ``ssl-core select RUN --count N --by typiclust|kcenter|random``.

=============  =========================================================================
``typiclust``  the most typical image of each of the largest clusters that have no label
``kcenter``    the image that is farthest from all that are chosen, again and again
``random``     any images: what the other two are to be compared with
=============  =========================================================================

Distances are Euclidean, of l2-normalized features. docs/duplicates.md compares the three on CIFAR-10.
"""

import contextlib
import os
import warnings
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from ssl_core import distributed
from ssl_core.data import DataConfig, Images, MemoryImages, decoded, open_encoded
from ssl_core.data.chosen import chosen_source, write_chosen
from ssl_core.data.files import FileImages
from ssl_core.data.lists import listed_images
from ssl_core.data.pixels import BrokenImageError
from ssl_core.data.source import readable
from ssl_core.evaluate.search import nearest_others
from ssl_core.evaluate.subject import load_subject
from ssl_core.files import write_json
from ssl_core.folder import check_writable
from ssl_core.philox import permutation

Rule: TypeAlias = Literal["typiclust", "kcenter", "random"]

MOST_CLUSTERS, LEAST_SIZE, NEIGHBOURS = 500, 5, 20  # of TypiClust, section 3.2 and appendix
_FEW_CLUSTERS, _BATCH = 50, 5000  # more clusters are found by mini-batches of so many rows
_STREAM = (0x73656C65, 0)  # "sele"


def typiclust(
    features: Float[Tensor, "n f"], count: int, *, labelled: Int64[Tensor, " m"] | None = None, seed: int = 0
) -> list[int]:
    """The most typical images of clusters without labels, the largest cluster first.

    K-means makes as many clusters as there are labels then, at most 500. Typicality is 1 / (mean distance to the
    20 nearest of the cluster, or to all where there are fewer). Where more images are asked for than clusters have
    none, those with the fewest labels come next. Clusters of fewer than five images are left out, unless all are.
    Paper: Hacohen et al., 2022, section 3.2, arXiv 2202.02794. Its code differs: squared distances, at most half of the
    cluster as neighbors, and clusters of five left out as well.

    Args:
        features: (n f) features, on the CPU.
        count: number of images, at most n - m.
        labelled: (m) images that have labels; None is none.
        seed: seed of k-means.

    Returns:
        Indices, in the order of their choice.
    """
    unit = F.normalize(features.float(), dim=1)
    covered = torch.zeros(len(unit), dtype=torch.bool)
    if labelled is not None:
        covered[labelled] = True
    cluster = _clusters(unit, min(int(covered.sum()) + count, MOST_CLUSTERS), seed)
    size = cluster.bincount()
    free, labels = cluster[~covered].bincount(minlength=len(size)), cluster[covered].bincount(minlength=len(size))
    is_large = size >= LEAST_SIZE
    chosen: list[int] = []
    for _ in range(count):
        open_clusters = (free > 0) & (is_large if (free[is_large] > 0).any() else True)
        _, _, best = min((int(labels[each]), -int(size[each]), int(each)) for each in open_clusters.nonzero())
        members = ((cluster == best) & ~covered).nonzero().flatten()
        image = int(members[_typicality(unit[members]).argmax()])
        chosen.append(image)
        covered[image] = True
        free[best] -= 1
        labels[best] += 1
    return chosen


def k_center(
    features: Float[Tensor, "n f"], count: int, *, labelled: Int64[Tensor, " m"] | None = None, seed: int = 0
) -> list[int]:
    """Images each of which is farthest from all that have labels or are chosen before it.

    The largest distance of any image to its nearest of these is at most twice the smallest possible.
    Paper: Sener and Savarese, 2018, algorithm 1, arXiv 1708.00489.

    Args:
        features: (n f) features, on the CPU.
        count: number of images, at most n - m.
        labelled: (m) images that have labels; of none, the first choice is random.
        seed: seed of that first choice.

    Returns:
        Indices, in the order of their choice.

    Example:
        >>> k_center(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [-1.0, 0.0]]), 2, labelled=torch.tensor([0]))
        [3, 2]
    """
    unit = F.normalize(features.float(), dim=1)
    centers = torch.tensor([], dtype=torch.int64) if labelled is None else labelled
    chosen = [] if len(centers) else permutation(seed, _STREAM, len(unit))[:1].tolist()
    nearest = torch.full((len(unit),), -torch.inf)  # largest cosine to a center
    for center in [*centers.tolist(), *chosen]:
        nearest = torch.maximum(nearest, unit @ unit[center])
        nearest[center] = torch.inf  # is not chosen again, though all others be equal to it
    while len(chosen) < count:
        chosen.append(int(nearest.argmin()))
        nearest = torch.maximum(nearest, unit @ unit[chosen[-1]])
        nearest[chosen[-1]] = torch.inf
    return chosen


def select(
    run: str,
    *,
    count: int,
    by: Rule = "typiclust",
    labelled: str | None = None,
    data: DataConfig | None = None,
    out: str | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Choose the images of a run that are worth a label next; writes a list of them.

    Several processes share the images; the first one chooses.

    Args:
        run: run directory, ``backbone.safetensors`` or ``timm:NAME`` whose features tell the images apart.
        count: number of images to choose.
        by: rule of the choice: typiclust, kcenter or random.
        labelled: list file of images that have labels, which are not chosen.
        data: images to choose from; None takes those of the run.
        out: folder of ``selected.json`` and of ``selected``, the source of the chosen images; None is that of ``run``.
        device: device that computes the features.
        seed: seed of k-means, of the first center and of the random choice.
        progress: whether a bar is shown.

    Returns:
        The content of ``selected.json``, whose ``images`` are in the order of their choice, in the first process.

    Raises:
        FileNotFoundError: for a path that does not exist.
        OSError: for a folder that cannot be written.
        ValueError: for a count beyond the images without labels, and for what does not fit together.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    subject = load_subject(run, data=data, device=device, out=out).fitted(None)
    folder = subject.folder(out) or Path()
    check_writable(folder)
    images = open_encoded(subject.data)
    path = chosen_source(images, folder / "selected")
    if path is not None and path.exists():
        raise FileExistsError(f"{path} is there already, perhaps with labels by now: choose another --out")
    known = set() if labelled is None else _labelled(images, labelled)
    _check_count(count, len(images) - len(known), images.name)
    source = None if by == "random" else decoded(images, subject.data)
    found = None if source is None else subject.together(source, "features" if progress else "", whole="first")
    if not distributed.goes_on_alone():
        return {}
    if source is None or found is None:
        chosen = _random(images, count, known, seed)
    else:
        numbers = {images.identifier(index): index for index in range(len(images))}
        rows = [numbers[source.identifier(index)] for index in readable(source)]
        places = torch.tensor([place for place, index in enumerate(rows) if index in known], dtype=torch.int64)
        _check_count(count, len(rows) - len(places), images.name)
        rule = typiclust if by == "typiclust" else k_center
        chosen = [rows[place] for place in rule(found.features, count, labelled=places, seed=seed)]
    result = {
        "encoder": run,
        "source": images.name,
        "by": by,
        "seed": seed,
        "labelled": labelled,
        "num_labelled": len(known),
        "images": [images.identifier(index) for index in chosen],
    }
    where = str(folder / "selected.json")
    if path is not None and not isinstance(images, MemoryImages):
        write_chosen(images, torch.tensor(chosen), path)
        where = str(path)
    write_json(folder / "selected.json", result)
    print(
        f"wrote {where}: {count:,} of the {len(images) - len(known):,} images of {images.name} without a label, by {by}"
    )
    return result


def _labelled(images: Images, file: str) -> set[int]:
    """Indices of the images that a list names."""
    if not isinstance(images, FileImages):
        raise ValueError(f"labelled {file} names files, and {images.name} has none")
    if not Path(file).is_file():
        raise FileNotFoundError(f"there is no list {file} of the images that have labels")
    listed = listed_images(Path(file))
    assert listed is not None  # a list has training images
    numbers = {os.path.realpath(images.identifier(index)): index for index in range(len(images))}
    names = [os.path.realpath(listed.identifier(index)) for index in range(len(listed))]
    if missing := [name for name in names if name not in numbers]:
        raise ValueError(f"{len(missing)} images of {file} are none of {images.name}, such as {missing[0]}")
    return {numbers[name] for name in names}


def _check_count(count: int, free: int, name: str) -> None:
    if count > free:
        raise ValueError(
            f"count {count:,} is more than the {free:,} images of {name} that can be read and have no label"
        )


def _random(images: Images, count: int, known: set[int], seed: int) -> list[int]:
    """Random images that can be read."""
    chosen: list[int] = []
    for index in permutation(seed, _STREAM, len(images)).tolist():
        if len(chosen) == count:
            return chosen
        if index not in known:
            with contextlib.suppress(BrokenImageError):
                images.image(index)
                chosen.append(index)
    _check_count(count, len(chosen), images.name)
    return chosen


def _clusters(unit: Tensor, number: int, seed: int) -> Int64[Tensor, " n"]:
    """The cluster of each row, by k-means."""
    from sklearn.cluster import KMeans, MiniBatchKMeans  # seconds of import that no other evaluation needs
    from sklearn.exceptions import ConvergenceWarning

    settings = {"n_clusters": number, "random_state": seed, "n_init": 1}
    kind = KMeans if number <= _FEW_CLUSTERS else partial(MiniBatchKMeans, batch_size=_BATCH)
    with warnings.catch_warnings():
        # Fewer different images than clusters leave some clusters empty, from which none is chosen.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = kind(**settings).fit_predict(unit.numpy())  # type: ignore[no-untyped-call]  # scikit-learn's
    return torch.from_numpy(found).long()


def _typicality(unit: Tensor) -> Tensor:
    """The inverse of each row's mean distance to its nearest others, of all rows of a cluster that have no label."""
    if len(unit) == 1:
        return torch.ones(1)
    cosine, _ = nearest_others(unit, min(NEIGHBOURS, len(unit) - 1))
    return 1 / (2 - 2 * cosine).clamp_min(0).sqrt().mean(dim=1).clamp_min(1e-5)
