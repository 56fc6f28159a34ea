"""How far views are from those of released codes, which work on 8-bit Pillow images: the table of docs/design/views.md.

python benchmarks/views_against_pillow.py --data cifar10

Both render the same draws. Pillow's do it through torchvision, as the codes of MoCo, SCE, CLSA and DSSL; Pillow rounds
to 256 levels after every op and approximates a Gaussian by boxes. Images are scikit-learn's two photographs at 224
pixels, and at 32 the first 100 test images of CIFAR-10, whose folder holds test-*.parquet.
"""

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

import torch
import torchvision.transforms.functional as TF
from PIL import Image, ImageFilter
from pyarrow import parquet
from sklearn.datasets import load_sample_images
from torch import Tensor

from ssl_core.views import (
    PRESETS,
    CenterCrop,
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    RandomResizedCrop,
    Solarize,
    ViewOp,
    ViewSpec,
    render,
    sample_parameters,
)
from ssl_core.views.ops.jitter import JITTER_ORDERS

DRAWS = {224: 50, 32: 10}  # of each image, by side
CUT = CenterCrop()  # does nothing to an image of the view's size

CASES: dict[str, tuple[ViewOp, ...]] = {
    "random resized crop": (RandomResizedCrop((0.2, 1.0)),),
    "color jitter 0.4, 0.4, 0.4, 0.1": (CUT, ColorJitter(prob=1.0)),
    "grayscale": (CUT, Grayscale(prob=1.0)),
    "blur, sigma 0.1 to 0.5": (CUT, GaussianBlur(1.0, (0.1, 0.5))),
    "blur, sigma 0.3 to 0.4": (CUT, GaussianBlur(1.0, (0.3, 0.4))),
    "blur, sigma 0.5 to 2": (CUT, GaussianBlur(1.0, (0.5, 2.0))),
    "solarize": (CUT, Solarize(prob=1.0)),
    "`moco_v2`": PRESETS["moco_v2"],
    "`strong_beta`": PRESETS["strong_beta"],
    "`dssl_cifar`": PRESETS["dssl_cifar"],
}


def in_pillow(image: Image.Image, ops: Sequence[ViewOp], values: list[float], side: int) -> Image.Image:
    """The view that released codes would make of an image from these parameters."""
    for op in ops:
        own, values = values[: len(op.parameters)], values[len(op.parameters) :]
        match op:
            case RandomResizedCrop():
                top, left, height, width = (int(value) for value in own)
                image = TF.resized_crop(image, top, left, height, width, [side, side])
            case ColorJitter():
                *amounts, order = own
                for change in JITTER_ORDERS[int(order)]:
                    adjust = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)[change]
                    image = adjust(image, amounts[change]) if amounts[change] != (change != 3) else image
            case Grayscale():
                image = TF.to_grayscale(image, 3) if own[0] else image
            case GaussianBlur():
                image = image.filter(ImageFilter.GaussianBlur(own[0])) if own[0] else image
            case Solarize():
                image = TF.solarize(image, 128) if own[0] else image
            case HorizontalFlip():
                image = TF.hflip(image) if own[0] else image
    return image


def differences(ops: Sequence[ViewOp], images: list[Image.Image], side: int) -> Tensor:
    """Absolute differences of all pixels of all views, in levels of 255."""
    spec, found = ViewSpec(tuple(ops), (side,)), []
    for number, image in enumerate(images):
        pixels = TF.pil_to_tensor(image)
        index, size = torch.arange(DRAWS[side]), torch.tensor([pixels.shape[1:]]).expand(DRAWS[side], -1)
        drawn = sample_parameters(spec, seed=0, epoch=number, image_index=index, view_index=0, image_size=size)
        for parameters in drawn:
            ours = render(pixels, parameters, spec)[0]
            theirs = TF.pil_to_tensor(in_pillow(image, spec.ops, parameters.tolist(), side))
            found.append((255 * ours - theirs).abs().flatten())
    return torch.cat(found)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-10's shards")
    shard = min(parser.parse_args().data.glob("test-*.parquet"))
    rows = parquet.read_table(shard).column(0).slice(0, 100).to_pylist()
    small = [Image.open(io.BytesIO(row["bytes"])).convert("RGB") for row in rows]
    photographs = [Image.fromarray(photograph) for photograph in load_sample_images().images]
    squares = [TF.center_crop(TF.resize(photograph, [224]), [224, 224]) for photograph in photographs]
    print("| view | size | mean | 99th percentile | largest | beyond 4 levels |\n|---|---|---|---|---|---|")
    for name, ops in CASES.items():
        # Ops alone act on an image of the view's size.
        for side, images in ((224, squares if ops[0] is CUT else photographs), (32, small)):
            levels = differences(ops, images, side)
            p99 = levels.kthvalue(round(0.99 * len(levels))).values.item()
            beyond = 100 * (levels > 4).double().mean().item()
            print(
                f"| {name} | {side} | {levels.mean():.1f} | {p99:.0f} | {levels.max():.0f} | {beyond:.1f} % |",
                flush=True,
            )


if __name__ == "__main__":
    main()
