"""Draws renderers.png: originals, and views that each renderer drew from the same parameters.

TRITON_INTERPRET=1 python docs/figures/renderers.py      # with Triton's kernels interpreted, where there is no GPU
"""

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor

from ssl_core.views import (
    HEAVY,
    PRESETS,
    RENDERERS,
    ViewSpec,
    choose_renderer,
    pack_images,
    render_views,
    sample_parameters,
)

FILE = Path(__file__).with_name("renderers.png")
SIDE = 64
AMPLIFIED = 100_000
# Each of both photos, with draws of their own.
SPECS = {
    "strong": PRESETS["strong"],
    "strong_gamma": PRESETS["strong_gamma"],
    "moco_v2_uncropped": PRESETS["moco_v2_uncropped"],
    "clsa_strong": PRESETS["clsa_strong"],
    "dssl_cifar + ra_2_5 + jigsaw_4": (*PRESETS["dssl_cifar"], *HEAVY["paper"]),
    "dssl_byol": PRESETS["dssl_byol"],
}
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def views(photos: list[Tensor], renderer: str) -> list[tuple[Tensor, ...]]:
    """For each spec, both photos' views."""
    device = torch.device("cuda" if renderer == "device" and torch.cuda.is_available() else "cpu")
    choose_renderer(renderer, device)
    packed = pack_images(photos)
    packed = packed._replace(pixels=packed.pixels.to(device), layout=packed.layout.to(device))
    specs = [ViewSpec(ops, (SIDE,), name=name) for name, ops in SPECS.items()]
    parameters = [
        sample_parameters(
            spec,
            seed=3,
            epoch=0,
            image_index=torch.arange(len(photos), device=device),
            view_index=index,
            image_size=packed.layout[:, 1:3],
        )
        for index, spec in enumerate(specs)
    ]
    return [tuple(pictures.cpu()) for pictures in render_views(packed, parameters, specs, renderer=renderer, **PLAIN)]


def main() -> None:
    # A quarter of their size, which an interpreted kernel can read in reasonable time.
    photos = [torch.from_numpy(image[::4, ::4].copy()).permute(2, 0, 1) for image in load_sample_images().images]
    drawn = {renderer: views(photos, renderer) for renderer in reversed(RENDERERS)}  # the reference first
    reference, *fused = drawn
    columns = ["original", *drawn, *(f"{name} - {reference}\nx {AMPLIFIED:,}" for name in fused)]
    figure, rows = plt.subplots(2 * len(SPECS), len(columns), figsize=(1.5 * len(columns), 3 * len(SPECS)))
    for axes in rows.flat:
        axes.axis("off")
    for axes, name in zip(rows[0], columns, strict=True):
        axes.set_title(name, fontsize=9)
    for place, name in enumerate(SPECS):
        for photo, original in enumerate(photos):
            row = rows[2 * place + photo]
            row[0].imshow(original.permute(1, 2, 0))
            row[0].text(-0.05, 0.5, name, transform=row[0].transAxes, rotation=90, ha="right", va="center", fontsize=7)
            pictures = {renderer: found[place][photo] for renderer, found in drawn.items()}
            for axes, picture in zip(row[1:], pictures.values(), strict=False):
                axes.imshow(picture.permute(1, 2, 0).clamp(0, 1), interpolation="nearest")
            for axes, renderer in zip(row[1 + len(drawn) :], fused, strict=True):
                difference = (pictures[renderer] - pictures[reference]).abs()
                axes.imshow((AMPLIFIED * difference).clamp(0, 1).permute(1, 2, 0), interpolation="nearest")
                axes.text(2, SIDE - 4, f"max {difference.max():.1e}", color="white", fontsize=7)
    figure.tight_layout(pad=0.3)
    figure.savefig(FILE, dpi=72)


if __name__ == "__main__":
    main()
