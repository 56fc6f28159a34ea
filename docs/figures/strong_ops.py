"""Plots strong_ops.png: what each distortion of CLSA's pools does at a low, a middle and a high level.

python docs/figures/strong_ops.py
"""

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from sklearn.datasets import load_sample_image
from torch import Tensor

from ssl_core.views import DISTORTIONS, CenterCrop, RandAugment, ViewSpec, render, sample_parameters

SIDE = 64
LEVELS = (1, 5, 9)
POOLS = ("clsa_code14", "clsa_paper14")


def one_distortion(pool: str, level: int) -> ViewSpec:
    return ViewSpec((CenterCrop(), RandAugment(pool, num_ops=1, prob=1.0, level_range=(level, level))), (SIDE,))


def parameters_at(level: int) -> dict[str, Tensor]:
    """Each distortion's parameters at a level, found among many draws; of two signs the positive one."""
    found = {}
    for pool in POOLS:
        index, sizes = torch.arange(500), torch.full((500, 2), SIDE)
        drawn = sample_parameters(
            one_distortion(pool, level), seed=0, epoch=0, image_index=index, view_index=0, image_size=sizes
        )
        found |= {DISTORTIONS[int(row[0])]: row for row in drawn if row[1] >= 0}
    return found


def show(axes: Axes, photo: Tensor, parameters: Tensor, title: str) -> None:
    (picture,) = render(photo, parameters, one_distortion("clsa_code14", 1))
    axes.imshow(picture.permute(1, 2, 0), interpolation="nearest")
    axes.set_title(title, fontsize=8)


def main() -> None:
    photo = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)
    parameters = [parameters_at(level) for level in LEVELS]
    names = [name for name in DISTORTIONS if name in parameters[0]]
    graded = [name for name in names if parameters[0][name][1] > 0]
    figure, rows = plt.subplots(5, 9, figsize=(11, 7.6))
    for axes in rows.flat:
        axes.axis("off")
    for axes, name in zip(rows[0], [name for name in names if name not in graded], strict=False):
        show(axes, photo, parameters[0][name], name)
    cells = iter(rows[1:].flat)
    for name in graded:
        for level, drawn in zip(LEVELS, parameters, strict=True):
            show(next(cells), photo, drawn[name], f"{name}\nlevel {level}: {drawn[name][1]:.3g}")
    figure.tight_layout()
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=72)


if __name__ == "__main__":
    main()
