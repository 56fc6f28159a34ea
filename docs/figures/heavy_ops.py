"""Plots heavy_ops.png, each distortion of DSSL's code at three magnitudes, and heavy_views.png, its heavy views.

python docs/figures/heavy_ops.py
"""

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.datasets import load_sample_image
from torch import Tensor

from ssl_core.views import (
    DISTORTIONS,
    HEAVY,
    POOLS,
    PRESETS,
    CenterCrop,
    RandAugment,
    ViewOp,
    ViewSpec,
    derive,
    render,
    sample_parameters,
)

FOLDER = Path(__file__).parent
POOL = "dssl_code16"
MAGNITUDES = (5, 9, 16)
COLUMNS = 7
SIDES = (224, 32)
NUM_DRAWS = 4
SEED = 5  # of no meaning but that its standard view keeps its colors


def one_distortion(magnitude: int) -> ViewSpec:
    return ViewSpec((CenterCrop(), RandAugment(POOL, 1, prob=1.0, level_range=(magnitude, magnitude))), (SIDES[0],))


def parameters_at(magnitude: int) -> dict[str, Tensor]:
    """Each distortion's parameters at a magnitude, found among many draws; of two signs the positive one."""
    index, sizes = torch.arange(500), torch.full((500, 2), SIDES[0])
    drawn = sample_parameters(
        one_distortion(magnitude), seed=SEED, epoch=0, image_index=index, view_index=0, image_size=sizes
    )
    return {DISTORTIONS[int(row[0])]: row for row in drawn if row[1] >= 0}


def show(axes: Axes, picture: Tensor, title: str) -> None:
    # Small views show their pixels; large ones are reduced without aliasing.
    axes.imshow(picture.permute(1, 2, 0), interpolation="nearest" if len(picture[0]) < 64 else "antialiased")
    axes.set_title(title, fontsize=8, pad=2)


def distortions(photo: Tensor) -> Figure:
    parameters = {magnitude: parameters_at(magnitude) for magnitude in MAGNITUDES}
    ranges = POOLS[POOL].magnitudes
    graded = [name for name in ranges if ranges[name].high > ranges[name].low]
    figure, rows = plt.subplots(1 + 2 * len(MAGNITUDES), COLUMNS, figsize=(9, 10.2))
    for axes in rows.flat:
        axes.axis("off")

    (plain,) = render(photo, torch.empty(0, dtype=torch.float64), ViewSpec((CenterCrop(),), (SIDES[0],)))
    show(rows[0, 0], plain, "image, 224 px")
    for axes, name in zip(rows[0, 1:], [name for name in ranges if name not in graded], strict=False):
        (picture,) = render(photo, parameters[MAGNITUDES[0]][name], one_distortion(MAGNITUDES[0]))
        show(axes, picture, name)
    for place, name in enumerate(graded):
        block, column = divmod(place, COLUMNS)
        for row, (magnitude, drawn) in enumerate(parameters.items(), start=1 + block * len(MAGNITUDES)):
            (picture,) = render(photo, drawn[name], one_distortion(magnitude))
            heading = f"{name}\n" if magnitude == MAGNITUDES[0] else ""
            show(rows[row, column], picture, f"{heading}M {magnitude}: {drawn[name][1]:.3g}")
    figure.tight_layout(pad=0.4)
    return figure


def heavy_views(photo: Tensor) -> Figure:
    """Each heavy view's draws in one row, the same draws at both sizes; presets of equal ops share a row."""
    named: dict[tuple[ViewOp, ...], list[str]] = {}
    for name, ops in HEAVY.items():
        named.setdefault(ops, []).append(name)
    figure, rows = plt.subplots(
        1 + len(named),
        2 * NUM_DRAWS + 1,
        figsize=(9, 13),
        gridspec_kw={
            "width_ratios": [1.0] * NUM_DRAWS + [0.2] + [1.0] * NUM_DRAWS,
            "wspace": 0.04,
            "hspace": 0.04,
            "left": 0.11,
            "right": 0.995,
            "top": 0.98,
            "bottom": 0.005,
        },
    )
    for axes in rows.flat:
        axes.axis("off")

    def view(spec: ViewSpec, view_index: int) -> Tensor:
        (row,) = sample_parameters(
            spec,
            seed=SEED,
            epoch=0,
            image_index=torch.tensor([0]),
            view_index=view_index,
            image_size=torch.tensor([photo.shape[1:]]),
        )
        return render(photo, row, spec)[0]

    for side, columns in zip(SIDES, (rows[:, :NUM_DRAWS], rows[:, NUM_DRAWS + 1 :]), strict=True):
        standard = ViewSpec(PRESETS["dssl_cifar"], (side,))
        show(columns[0, 0], view(standard, 0), f"{side} px")
        for row, ops in zip(columns[1:], named, strict=True):
            for draw, axes in enumerate(row, start=1):
                show(axes, view(derive([standard], 0, ops), draw), "")
    for axes, names in zip(rows[:, 0], [["standard view"], *named.values()], strict=True):
        axes.text(-0.08, 0.5, "\n".join(names), transform=axes.transAxes, ha="right", va="center", fontsize=8)
    return figure


def main() -> None:
    photo = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)
    distortions(photo).savefig(FOLDER / "heavy_ops.png", dpi=72)
    heavy_views(photo).savefig(FOLDER / "heavy_views.png", dpi=72)


if __name__ == "__main__":
    main()
