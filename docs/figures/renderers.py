"""Saves renderers.png, the same views by each renderer, and prints how far they are apart.

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
    DISTORTIONS,
    HEAVY,
    POOLS,
    PRESETS,
    RENDERERS,
    CenterCrop,
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    Jigsaw,
    RandAugment,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    Solarize,
    ViewOp,
    ViewSpec,
    choose_renderer,
    pack_images,
    render_views,
    sample_parameters,
)

FILE = Path(__file__).with_name("renderers.png")
SIDE = 64
AMPLIFIED = 1_000_000
# Each of both photos, with draws of their own.
SPECS = {
    "strong": PRESETS["strong"],
    "strong_gamma": PRESETS["strong_gamma"],
    "moco_v2_uncropped": PRESETS["moco_v2_uncropped"],
    "clsa_strong": PRESETS["clsa_strong"],
    "dssl_cifar,\nheavy: paper": (*PRESETS["dssl_cifar"], *HEAVY["paper"]),
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


def ops() -> dict[str, tuple[ViewOp, ...]]:
    """Each op alone, after a crop where it is no crop itself, and always applied."""
    crop = RandomResizedCrop()
    return {
        "random_resized_crop": (crop,),
        "random_resized_crop, bicubic": (RandomResizedCrop(interpolation="bicubic"),),
        "random_crop": (RandomCrop(padding=4),),
        "center_crop": (CenterCrop(short_side=40),),
        "resize": (Resize(),),
        "resize, pad": (Resize(mode="pad"),),
        "horizontal_flip": (crop, HorizontalFlip(prob=1.0)),
        "color_jitter": (crop, ColorJitter(prob=1.0)),
        "grayscale": (crop, Grayscale(prob=1.0)),
        "gaussian_blur": (crop, GaussianBlur(prob=1.0)),
        "solarize": (crop, Solarize(prob=1.0)),
        "jigsaw": (crop, Jigsaw(4)),
    } | {name: (CenterCrop(), RandAugment(pool_of(name), 1, 1.0, "continuous")) for name in DISTORTIONS[1:]}


def pool_of(distortion: str) -> str:
    return next(name for name, pool in POOLS.items() if distortion in pool.magnitudes)


def print_errors(photos: list[Tensor], renderers: list[str]) -> None:
    """Markdown: for each op, how far each renderer's pixels are from the reference's."""
    boxes = [(photo, y, x) for photo in photos for y in range(0, 61, 20) for x in range(0, 101, 50)]
    packed = pack_images([photo[:, y : y + 45, x : x + 55] for photo, y, x in boxes])
    print("| op | " + " | ".join(f"{name}: largest | mean" for name in renderers) + " |")
    print("|---|" + "---|---|" * len(renderers))
    for name, chain in ops().items():
        spec = ViewSpec(chain, (32,))
        index = torch.arange(2000)
        drawn = sample_parameters(
            spec,
            seed=0,
            epoch=0,
            image_index=index,
            view_index=0,
            image_size=torch.tensor([[45, 55]]).expand(len(index), -1),
        )
        if name in DISTORTIONS:
            drawn = drawn[drawn[:, 0] == DISTORTIONS.index(name)]
        parameters = [drawn[: len(boxes)]]
        (expected,) = render_views(packed, parameters, [spec], renderer="reference", **PLAIN)
        cells = []
        for renderer in renderers:
            (found,) = render_views(packed, parameters, [spec], renderer=renderer, **PLAIN)
            difference = (found - expected).abs()
            cells += [f"{difference.max():.1e}", f"{difference.mean():.1e}"]
        print(f"| {name} | " + " | ".join(cells) + " |")


def main() -> None:
    # A quarter of their size, which an interpreted kernel can read in reasonable time.
    photos = [torch.from_numpy(image[::4, ::4].copy()).permute(2, 0, 1) for image in load_sample_images().images]
    drawn = {renderer: views(photos, renderer) for renderer in reversed(RENDERERS)}  # the reference first
    reference, *fused = drawn
    columns = ["original", *drawn, *(f"{name} - {reference}\nx {AMPLIFIED:,}" for name in fused)]
    figure, rows = plt.subplots(2 * len(SPECS), len(columns), figsize=(1.3 * len(columns), 2.4 * len(SPECS)))
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
    print_errors(photos, fused)


if __name__ == "__main__":
    main()
