"""Views a second: ours against torchvision's, kornia's and albumentations' transforms of the same recipe.

python benchmarks/bench_views.py                       # on one core of the CPU
python benchmarks/bench_views.py --threads 2 --rows cpu reference
python benchmarks/bench_views.py --device cuda         # ours and kornia on the GPU
python benchmarks/bench_views.py --out FOLDER          # and a plot

From decoded uint8 images to normalized float32 batches, with everything that is random drawn anew each time; decoding
is not counted. All see the same images, in turns. Each project gets what suits it best: torchvision v2 one uint8 tensor
or PIL image at a time, albumentations one NumPy array at a time, kornia the whole batch in float32. The recipes do the
same, but for details: kornia and albumentations resize without antialias, and all three blur with 13 taps at any sigma.
In place of our pools torchvision draws as many distortions from its own; the other two have no such op.
"""

import argparse
import json
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from machine import describe_machine, times_s
from torch import Tensor

from ssl_core.data.device import to_device
from ssl_core.views import PRESETS, RENDERERS, RandAugment, ViewSpec, choose_renderer, pack_images, render_views
from ssl_core.views import sample_parameters as sampled

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TAPS = 13


class Case(NamedTuple):
    """Images of one size, and what they become."""

    recipe: str
    height: int
    width: int
    size: int
    images: int


# DSSL's heavy view as its code has it for CIFAR-10: a standard view and two distortions.
SPECS = {
    "strong": PRESETS["strong"],
    "clsa_strong": PRESETS["clsa_strong"],
    "dssl_heavy": (*PRESETS["dssl_cifar"], RandAugment("dssl_code16", num_ops=2, prob=1.0, level_range=(9, 9))),
}
CASES = [
    Case("strong", 32, 32, 32, 256),
    Case("clsa_strong", 32, 32, 32, 256),
    Case("dssl_heavy", 32, 32, 32, 256),
    Case("strong", 400, 500, 224, 32),
]
Run = Callable[[], object]


def ours(case: Case, images: Tensor, renderer: str, views: int = 1) -> Run:
    """All views of the images in one call, parameters sampled on the CPU as in training; a new epoch each time."""
    specs = [ViewSpec(SPECS[case.recipe], (case.size,))] * views
    packed = pack_images(list(images.cpu()))
    index, image_size = torch.arange(len(images)), packed.layout[:, 1:3]
    packed = packed._replace(pixels=packed.pixels.to(images.device), layout=packed.layout.to(images.device))
    epoch = 0

    def run() -> object:
        nonlocal epoch
        epoch += 1
        parameters = [
            sampled(spec, seed=0, epoch=epoch, image_index=index, view_index=view, image_size=image_size)
            for view, spec in enumerate(specs)
        ]
        parameters = [to_device(each, images.device) for each in parameters]
        return render_views(packed, parameters, specs, mean=MEAN, std=STD, renderer=renderer)

    return run


def torchvision(case: Case, images: Tensor, as_pil: bool = False) -> Run:
    """One image at a time, as a DataLoader's worker would."""
    from torchvision.transforms import v2

    ops: list[Any] = [
        v2.RandomResizedCrop(case.size, scale=(0.2, 1.0), antialias=True),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        v2.RandomGrayscale(0.2),
    ]
    if case.recipe != "dssl_heavy":
        ops.append(v2.RandomApply([v2.GaussianBlur(TAPS, (0.1, 2.0))], p=0.5))
    ops.append(v2.RandomHorizontalFlip())
    if case.recipe == "clsa_strong":
        ops += [v2.RandomApply([v2.RandAugment(num_ops=1)], p=0.5) for _ in range(5)]
    if case.recipe == "dssl_heavy":
        ops.append(v2.RandAugment(num_ops=2, magnitude=9))
    to_tensor = [v2.ToImage()] if as_pil else []
    transform = v2.Compose([*ops, *to_tensor, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    decoded = [v2.functional.to_pil_image(image) for image in images] if as_pil else list(images)
    return lambda: torch.stack([transform(image) for image in decoded])


def kornia(case: Case, images: Tensor) -> Run | None:
    """The batch at once, each image with draws of its own."""
    if case.recipe != "strong":
        return None
    import kornia.augmentation as k

    taps = min(TAPS, case.size - 1 + case.size % 2)
    transform = k.ImageSequential(
        k.RandomResizedCrop((case.size, case.size), scale=(0.2, 1.0), cropping_mode="resample"),
        k.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        k.RandomGrayscale(p=0.2),
        k.RandomGaussianBlur((taps, taps), (0.1, 2.0), p=0.5),
        k.RandomHorizontalFlip(p=0.5),
        k.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
    )
    return lambda: transform(images.float() / 255)


def albumentations(case: Case, images: Tensor) -> Run | None:
    """One array at a time, with OpenCV on one thread."""
    if case.recipe != "strong":
        return None
    import albumentations as a
    import cv2

    cv2.setNumThreads(torch.get_num_threads())
    transform = a.Compose(
        [
            a.RandomResizedCrop((case.size, case.size), scale=(0.2, 1.0)),
            a.ColorJitter((0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1), p=0.8),
            a.ToGray(p=0.2),
            a.GaussianBlur(blur_limit=(TAPS, TAPS), sigma_limit=(0.1, 2.0), p=0.5),
            a.HorizontalFlip(p=0.5),
            a.Normalize(MEAN, STD),
        ]
    )
    arrays = [np.ascontiguousarray(image.permute(1, 2, 0).numpy()) for image in images]
    return lambda: torch.stack([torch.from_numpy(transform(image=array)["image"]).permute(2, 0, 1) for array in arrays])


OTHERS = {
    "torchvision v2": torchvision,
    "torchvision v2, PIL": partial(torchvision, as_pil=True),
    "kornia": kornia,
    "albumentations": albumentations,
}


def runs(case: Case, device: torch.device, names: Sequence[str]) -> dict[str, Run]:
    """What is measured, ours first."""
    generator = torch.Generator().manual_seed(0)
    # Smooth, as photographs are: noise would flip every branch of every pixel.
    coarse = torch.rand(case.images, 3, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (case.height, case.width), mode="bicubic").clamp(0, 1)
    images = (smooth * 255).to(device, torch.uint8)
    found: dict[str, Run] = {}
    for name in names:
        if name in RENDERERS:
            found[name] = ours(case, images, choose_renderer(name, device))
            continue
        package = name.split()[0]
        if find_spec(package) is None:
            print(f"{package} is not installed")
        elif (run := OTHERS[name](case, images)) is not None:
            found[name] = run
    return found


def plot(records: list[dict[str, Any]], file: Path, title: str) -> None:
    """Bars of views a second, one group for each case."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    cases = list(dict.fromkeys(record["case"] for record in records))
    names = list(dict.fromkeys(record["renderer"] for record in records))
    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        points = {record["case"]: record["views_per_s"] for record in records if record["renderer"] == name}
        at = [index + (place - (len(names) - 1) / 2) * width for index, case in enumerate(cases) if case in points]
        bars = axes.bar(at, list(points.values()), width, label=name)
        axes.bar_label(bars, [f"{value:,.0f}" for value in points.values()], fontsize=7)
    axes.set_xticks(range(len(cases)), cases)
    axes.set_yscale("log")
    axes.set_ylabel("views / s")
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=8, ncols=len(names))
    axes.margins(y=0.12)
    figure.savefig(file, dpi=120)


def main() -> None:
    """Measure, print a table, and plot it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--rows", nargs="+", choices=[*RENDERERS, *OTHERS], help="default: all that the device has")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument("--out", type=Path, help="folder for a plot")
    parser.add_argument("--quick", action="store_true", help="2 repeats, a quarter of the images")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", module="kornia|albumentations")
    device = arguments.device
    on_gpu = device.type == "cuda"
    names = arguments.rows or (["device", "kornia"] if on_gpu else ["cpu", "reference", *OTHERS])

    print(__doc__.partition("\n")[0])
    print(describe_machine(device))
    print(f"{2 if arguments.quick else arguments.repeats} runs in turns\n")
    print("| views | renderer | views / s | spread | ours is faster by |")
    print("|---|---|---|---|---|")
    records: list[dict[str, Any]] = []

    def save() -> None:
        if arguments.json:
            arguments.json.write_text(json.dumps(records, indent=1))

    for case in CASES:
        if on_gpu:
            case = case._replace(images=256 if case.size > 100 else 512)
        if arguments.quick:
            case = case._replace(images=case.images // 4)
        label = f"{case.recipe}, {case.size} px from {case.height} x {case.width}"
        found = times_s(runs(case, device, names), 2 if arguments.quick else arguments.repeats, device)
        first = next(iter(found.values())).median
        for name, time in found.items():
            rates = [case.images / seconds for seconds in time]
            spread, ratio = f"{rates[2]:,.0f} to {rates[1]:,.0f}", time.median / first
            print(f"| {label} | {name} | {rates[0]:,.0f} | {spread} | {ratio:.1f}x |", flush=True)
            records.append({"case": label.replace(", ", "\n"), "renderer": name, "views_per_s": rates[0]})
        save()
    if on_gpu:
        records += two_views(device, arguments.repeats)
        save()
    if arguments.out:
        title = f"Views a second on {device}, {arguments.threads} thread(s); {describe_machine(device).splitlines()[2]}"
        plot(records, arguments.out / f"views_{device.type}.png", title)


def two_views(device: torch.device, repeats: int) -> list[dict[str, Any]]:
    """Both views of 256 images at 224 px, as a training step on a GPU asks for them."""
    case = Case("strong", 400, 500, 224, 256)
    images = torch.randint(0, 256, (case.images, 3, case.height, case.width), dtype=torch.uint8, device=device)
    both = {"device": ours(case, images, "device", views=2)}
    if find_spec("kornia") is not None and (view := kornia(case, images)) is not None:
        both["kornia"] = lambda: (view(), view())
    print()
    records = []
    for name, time in times_s(both, repeats, device).items():
        print(f"two views of {case.images} images at {case.size} px, {name}: {1e3 * time.median:.2f} ms")
        records.append({"case": "two views", "renderer": name, "views_per_s": 2 * case.images / time.median})
    return records


if __name__ == "__main__":
    main()
