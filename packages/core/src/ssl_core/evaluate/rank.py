"""Which of some runs is best, without labels: four measures of features, each as its paper or its code has it.

``ssl-core rank RUN ...`` computes them on images that the runs have not trained on where there are some, and puts the
runs in order by each.

==========  ==========  ================================================================================
measure     layer       best
==========  ==========  ================================================================================
RankMe      projection  high: the projections fill many dimensions
alpha-ReQ   backbone    near 1: eigenvalues fall as 1 / rank
LiDAR       projection  high: images differ in many dimensions by more than views of one image do
neighbors   backbone    high: two views of an image have the same neighbors
==========  ==========  ================================================================================

Legend: n images, q views of each, d features, u views compared.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_core import distributed
from ssl_core.data import DataConfig, ImageSource, decoded, open_encoded, open_test
from ssl_core.data.source import readable
from ssl_core.evaluate.encoder import load_encoders, run_views, shared_data
from ssl_core.evaluate.features import evaluation_view
from ssl_core.evaluate.health import effective_rank, entropy_rank
from ssl_core.evaluate.search import nearest_others
from ssl_core.evaluate.subject import Subject, check_out
from ssl_core.files import write_json
from ssl_core.folder import check_writable
from ssl_core.philox import permutation
from ssl_core.views import ViewSpec, make_view_specs, shortest_side

FIRST, LAST = 4, 100  # ranks of the eigenvalues that alpha-ReQ's code fits
DELTA = 1e-4  # of the mean variance within images; LiDAR's paper has a constant without a value
NEIGHBORS = 10
_IMAGE_STREAM = (0x72616E6B, 0)  # "rank"
_LEAST = 50  # images; of less the measures say next to nothing


class Measure(NamedTuple):
    """A measure of a run that needs no labels.

    Attributes:
        title: name in the table.
        layer: features that its paper takes it of.
        best: direction, in words.
        says: what it is measured on, and what its source says of comparisons.
    """

    title: str
    layer: str
    best: str
    says: str


MEASURES = {
    "rankme": Measure(
        "RankMe",
        "projection",
        "higher",
        "Garrido et al., 2023, arXiv 2210.02885, of 25,600 images: only to compare different runs of a given method; a "
        "high rank is necessary, not sufficient",
    ),
    "alpha_req": Measure(
        "alpha-ReQ",
        "backbone",
        "near 1",
        "Agrawal et al., 2022 (NeurIPS), of all test images: across objectives too, and necessary, not sufficient; the "
        "distance from 1 is our reading of their range near 1",
    ),
    "lidar": Measure(
        "LiDAR",
        "projection",
        "higher",
        "Thilak et al., 2024, arXiv 2312.04000, of 50 or 10 views of more images than features: compared among "
        "settings of one method; a high rank does not guarantee performance",
    ),
    "neighbors": Measure(
        "neighbors",
        "backbone",
        "higher",
        "overlap of Doimo et al., 2020, arXiv 2007.03506, here between two views: no paper ranks runs by it",
    ),
}


def alpha_req(features: Float[Tensor, "n d"], *, first: int = FIRST, last: int = LAST) -> float:
    """Exponent of the power law that the eigenvalues of the features' covariance follow: lambda_i ~ i^-alpha.

    alpha = - slope of log lambda_i against log i, least squares with weights 1 / i over ranks i.
    Paper: Agrawal et al., 2022, alpha-ReQ, NeurIPS 35; ranks and weights are those of the authors' code (fastssl), the
    paper names none.
    Conventions: centered; float64; eigenvalues below 1e-12 of the largest are no part of the law.

    Args:
        features: (n d) features, n > 1, floating.
        first: first rank, from 1 on; 1 where there are not two from it on.
        last: last rank.

    Returns:
        alpha; infinity where less than two eigenvalues are left, as of a collapsed encoder.

    Example:
        >>> rows = torch.linalg.qr(torch.randn(200, 50).double().sub(0)).Q
        >>> rows = torch.linalg.qr(rows - rows.mean(dim=0)).Q  # centered, orthonormal
        >>> round(alpha_req(rows * torch.arange(1, 51) ** -0.75), 6)  # lambda_i ~ i^-1.5
        1.5
    """
    rows = features.double()
    rows = rows - rows.mean(dim=0)
    gram = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows
    values = torch.linalg.eigvalsh(gram).flip(0)
    values = values[values > 1e-12 * values[0].clamp_min(torch.finfo(torch.float64).tiny)][:last]
    start = first - 1 if len(values) > first else 0
    if len(values) - start < 2:
        return math.inf
    rank = torch.arange(start + 1, len(values) + 1, dtype=torch.float64)
    x, y, weight = rank.log(), values[start:].log(), 1 / rank / (1 / rank).sum()
    x, y = x - (weight * x).sum(), y - (weight * y).sum()
    return float(-(weight * x * y).sum() / (weight * x * x).sum())


def lidar(views: Float[Tensor, "n q d"], *, delta: float = DELTA) -> float:
    """Effective rank of the LDA matrix whose classes are the images and whose members are an image's views.

    exp(- sum_i p_i log p_i), p_i = lambda_i / sum_j lambda_j, of the eigenvalues of S_w^-1/2 S_b S_w^-1/2:
    S_b = mean over images of (mu_x - mu)(mu_x - mu)^T, S_w = mean over images and views of (e - mu_x)(e - mu_x)^T
    + delta I. Paper: Thilak et al., 2024, eqs. (1) to (4), arXiv 2312.04000.
    Conventions: float64; 0 log 0 = 0; ``delta`` is relative to the mean diagonal of S_w, so that the scale of the
    features does not matter.

    Args:
        views: (n q d) features of q views of each of n images, n > 1, q > 1, floating.
        delta: > 0, part of the mean variance within images.

    Example:
        >>> centers = 10 * torch.eye(3)[:, None]  # in a plane
        >>> round(lidar(centers + torch.randn(3, 500, 3)), 1)
        2.0
    """
    rows = views.double()
    centers = rows.mean(dim=1)
    within = (rows - centers[:, None]).flatten(0, 1)
    between = centers - centers.mean(dim=0)
    covariance = within.T @ within / len(within)
    ridge = (delta * covariance.diagonal().mean()).clamp_min(torch.finfo(torch.float64).tiny)
    covariance.diagonal().add_(ridge)
    # The eigenvalues of S_w^-1/2 S_b S_w^-1/2 are squares of the singular values of the whitened centers.
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), between.T, upper=False)
    return entropy_rank(torch.linalg.svdvals(whitened).square()).item()


def neighbor_agreement(
    first: Float[Tensor, "n d"], second: Float[Tensor, "n d"], *, k: int = NEIGHBORS
) -> Float[Tensor, ""]:
    """Mean part of an image's k nearest other images by one view that are so by another view too.

    Both views of all images: neighbors of a first view are among first views. By chance it is k / (n - 1).
    Paper: Doimo et al., 2020, neighborhood overlap, arXiv 2007.03506, which compares layers. Conventions: cosine.

    Args:
        first: (n d) features of a view of each image, floating.
        second: (n d) features of another view of the same images.
        k: number of neighbors, in [1, n - 1].

    Example:
        >>> first, second = torch.randn(2, 30, 4)
        >>> neighbor_agreement(first, first, k=5).item(), bool(neighbor_agreement(first, second, k=5) < 0.5)
        (1.0, True)
    """
    found = [nearest_others(nn.functional.normalize(view.float(), dim=1), k)[1] for view in (first, second)]
    return (found[0][:, :, None] == found[1][:, None, :]).any(dim=2).double().mean()


def measured(plain: Float[Tensor, "m d"], views: Float[Tensor, "n q d"]) -> dict[str, float]:
    """All measures of one layer, by name.

    Args:
        plain: (m d) features of images without augmentation.
        views: (n q d) features of q views of some images.
    """
    k = min(NEIGHBORS, len(views) - 1)
    return {
        "rankme": effective_rank(plain).item(),
        "alpha_req": alpha_req(plain),
        "lidar": lidar(views),
        "neighbors": neighbor_agreement(views[:, 0], views[:, 1], k=k).item(),
    }


class _Extracted(NamedTuple):
    """Features of a run, of both layers beside each other, the backbone's first: of images, and of views of some."""

    plain: Tensor  # (m f)
    views: Tensor  # (n q f)
    width: int  # of the backbone's


def _measured_layers(features: _Extracted) -> dict[str, Any]:
    plain, views, width = features
    return {
        "backbone": measured(plain[:, :width], views[:, :, :width]),
        "projection": measured(plain[:, width:], views[:, :, width:]),
        "num_features": {"backbone": width, "projection": plain.shape[1] - width},
    }


def placed(name: str, values: Mapping[str, float]) -> list[str]:
    """The runs from best to worst by a measure.

    Args:
        name: name of the measure in ``MEASURES``.
        values: the measure of each run.

    Example:
        >>> placed("alpha_req", {"a": 0.4, "b": 1.2, "c": 0.9})
        ['c', 'b', 'a']
    """
    return sorted(values, key=lambda run: abs(values[run] - 1) if name == "alpha_req" else -values[run])


def rank(
    runs: Sequence[str],
    *,
    data: DataConfig | None = None,
    images: int = 5000,
    view_images: int = 1000,
    views: int = 10,
    across_methods: bool = False,
    device: torch.device | str = "cpu",
    seed: int = 0,
    out: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Put runs in order without labels: RankMe, alpha-ReQ, LiDAR, and agreement of two views' neighbors.

    Several processes share the images, and then the runs whose features are measured.

    Args:
        runs: run directories of one method.
        data: images to take; None takes those that all runs were trained on. Of these the test split is taken, or else
            the training images.
        images: number of images of RankMe and alpha-ReQ, sampled by the seed; all where there are no more.
        view_images: number of those whose views LiDAR and the neighbors take; more than there are features is best.
        views: number of views of each of these, of the run's own augmentations, 2 or more.
        across_methods: whether runs of several methods are compared, for which these measures were not made.
        device: device that computes the features.
        seed: seed of the choice of images and of the views.
        out: folder of ``rank.json``; None writes nothing.
        progress: whether bars are shown.

    Returns:
        The content of ``rank.json``: ``runs``, the measures of both layers of each run; ``order``, the runs from best
        to worst by each measure; and every setting.

    Raises:
        FileNotFoundError: for a path that does not exist, a run's checkpoint among them.
        ValueError: for runs of several methods or on different data, runs without a projector, too few images, and
            numbers out of range.
    """
    check_out(out)
    if out is not None:
        check_writable(Path(out))
    if views < 2:
        raise ValueError(f"views must be 2 or more, got {views}")
    for name, number in {"images": images, "view_images": view_images}.items():
        if number < _LEAST:
            raise ValueError(f"{name} must be {_LEAST} or more, got {number}")
    loaded = load_encoders(runs, features="projection")
    has_names = all(card.method for _, card in loaded)  # runs of earlier versions name their package alone
    methods = list(dict.fromkeys(card.method if has_names else card.recipe for _, card in loaded))
    if len(methods) > 1 and not across_methods:
        raise ValueError(
            f"the runs are of {len(methods)} methods, {', '.join(methods)}, which these measures were not made to "
            f"compare ({MEASURES['rankme'].says}); --across_methods does it all the same"
        )
    data = data or shared_data(runs)
    test = open_test(data)
    encoded = open_encoded(data, "train") if test is None else test
    if len(encoded) < _LEAST:
        raise ValueError(f"{encoded.name} has {len(encoded)} images; the measures take {_LEAST} or more")
    chosen = permutation(seed, _IMAGE_STREAM, len(encoded))[:images]
    specs = {run: _own_views(run, card.image_size) for run, (_, card) in zip(runs, loaded, strict=True)}
    seen = [evaluation_view(card.image_size) for _, card in loaded] + [spec for own in specs.values() for spec in own]
    needed = shortest_side(seen)
    encoders = dict(zip(runs, loaded, strict=True))
    sources: dict[int, ImageSource] = {}

    def extract(run: str) -> _Extracted:
        module, card = encoders[run]
        if card.channels not in sources:
            subset = encoded.subset(chosen.sort().values)
            sources[card.channels] = decoded(replace(subset, channels=card.channels), data, at_least=needed)
        source = sources[card.channels]
        subject = Subject(run, _BothLayers(module).to(device), card, data, device)
        plain = subject.together(source, f"{run}, images" if progress else "").features
        some = permutation(seed, _IMAGE_STREAM, len(source))[:view_images].sort().values.tolist()
        of_views = torch.stack(
            [
                subject.together(
                    source,
                    f"{run}, view {number + 1} of {views}" if progress else "",
                    view=specs[run][number % len(specs[run])],
                    seed=number,
                    images=some,
                ).features
                for number in range(views)
            ],
            dim=1,
        )
        return _Extracted(plain, of_views, plain.shape[1] - card.num_features)

    found = dict(distributed.prepared_and_shared_out(runs, extract, _measured_layers))
    order = {
        name: placed(name, {run: found[run][measure.layer][name] for run in runs}) for name, measure in MEASURES.items()
    }
    source = sources[encoders[runs[0]][1].channels]
    num_images, num_viewed = len(readable(source)), min(view_images, len(source))
    shown = (
        f"{num_images:,} images of {encoded.name}, {'which the runs trained on' if test is None else 'not trained on'}"
    )
    result: dict[str, Any] = {
        "runs": found,
        "order": order,
        "measures": {name: measure._asdict() for name, measure in MEASURES.items()},
        "methods": methods,
        "images": shown,
        "num_images": num_images,
        "view_images": num_viewed,
        "views": views,
        "neighbors": NEIGHBORS,
        "seed": seed,
    }
    if not distributed.is_main():
        return result
    print(shown + f"; {views} views of {num_viewed:,} of them, {NEIGHBORS} neighbors")
    print(rank_text(found, order))
    if len(methods) > 1:
        print(f"compared across methods: {', '.join(methods)}")
    sizes = {layer: sorted({found[run]["num_features"][layer] for run in runs}) for layer in ("backbone", "projection")}
    for layer, numbers in sizes.items():
        if len(numbers) > 1:
            print(f"the {layer} has {' or '.join(map(str, numbers))} features, which bound RankMe and LiDAR")
    if out is not None:
        write_json(Path(out) / "rank.json", _in_json(result))
    return result


def rank_text(found: Mapping[str, Any], order: Mapping[str, Sequence[str]]) -> str:
    """A table with a column for each measure, in which runs stand from best to worst, and a line on each measure.

    Args:
        found: measures of each run, by layer and name.
        order: runs from best to worst, by measure.
    """
    names = {run: Path(run).resolve().name for run in found}
    if len({*names.values()}) < len(names):
        names = {run: run for run in found}
    columns = [
        [
            f"{measure.title} ({measure.best})",
            *(f"{names[run]} {found[run][measure.layer][name]:.4g}" for run in order[name]),
        ]
        for name, measure in MEASURES.items()
    ]
    widths = [max(map(len, column)) for column in columns]
    lines = [
        "  ".join([place, *(cell.ljust(width) for cell, width in zip(row, widths, strict=True))]).rstrip()
        for place, row in zip(
            [" ", *(f"{number}" for number in range(1, len(found) + 1))], zip(*columns, strict=True), strict=True
        )
    ]
    notes = [f"{measure.title}, {measure.layer}: {measure.says}" for measure in MEASURES.values()]
    return "\n".join([*lines, "", *notes])


def _in_json(value: Any) -> Any:
    """The same with null in place of infinity, which JSON has not."""
    if isinstance(value, dict):
        return {key: _in_json(each) for key, each in value.items()}
    return None if isinstance(value, float) and math.isinf(value) else value


class _BothLayers(nn.Module):
    """Backbone features and their projections, side by side."""

    def __init__(self, stacked: nn.Module) -> None:
        super().__init__()
        self.encoder, self.projector = stacked.children()

    def forward(self, images: Tensor) -> Tensor:
        features = self.encoder(images)
        return torch.cat([features, self.projector(features)], dim=1)


def _own_views(run: str, image_size: int) -> list[ViewSpec]:
    """The views of a run's configuration that stand alone, at the encoder's size: what it was trained to see alike."""
    specs = make_view_specs(run_views(run))
    own = [spec for spec in specs if spec.derived_from is None and not spec.partner and spec.sizes == (image_size,)]
    if not own:
        raise ValueError(f"{run} has no view of {image_size} px that continues none and is of the image itself")
    return own
