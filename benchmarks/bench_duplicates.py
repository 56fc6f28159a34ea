"""Near-duplicates: time and memory of the search among made features, and what is found of made copies of photographs.

python benchmarks/bench_duplicates.py                       # 200,000 x 512, and what 1,000,000 would take
python benchmarks/bench_duplicates.py --quick
python benchmarks/bench_duplicates.py --photographs FOLDER --model RUN

Made features have the spectrum of an encoder's: clusters of uneven sizes around centers, variances that fall as
1 / rank, and one in a hundred is a copy of another with a little noise. Of FOLDER, 200 images get four copies each
beside them: as JPEG of quality 50, of three quarters of the side, mirrored, and a fifth brighter.
"""

import argparse
import contextlib
import io
import math
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe_machine, measured_in_new_process, resident_bytes
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from ssl_core.data import DataConfig, open_encoded
from ssl_core.evaluate import find_duplicates, near_duplicates, nearest, nearest_others, whitening
from ssl_core.evaluate.search import PROBES
from ssl_core.philox import permutation

DIM, K, COPIES = 512, 10, 100  # one of so many images is a copy
TARGET = 1_000_000
CHECKED = 1000  # images whose neighbors are searched exactly
CHANGED = 200
KINDS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG, quality 50": lambda image: reopened(image, quality=50),
    "3/4 of the side": lambda image: image.resize(
        (3 * image.width // 4, 3 * image.height // 4), Image.Resampling.BICUBIC
    ),
    "mirrored": ImageOps.mirror,
    "brightness x 1.2": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
}


def reopened(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


def make_features(n: int) -> Tensor:
    """Clustered rows, the last hundredth of which are noisy copies of the first."""
    torch.manual_seed(0)
    scale = 1 / torch.arange(1, DIM + 1).sqrt()
    clusters = max(10, n // 200)
    centers = torch.randn(clusters, DIM) * scale
    sizes = 1 / torch.arange(1, clusters + 1) ** 0.5
    features = centers[torch.multinomial(sizes, n, replacement=True)]
    for block in features.split(8192):
        block += 0.7 * torch.randn(block.shape) * scale
    copies = n // COPIES
    features[-copies:] = features[:copies] + 0.1 * torch.randn(copies, DIM) * scale
    return features


def measure(sizes: list[int]) -> None:
    """Time of the steps at some numbers of images, and what is found among the most."""
    seconds: dict[str, list[float]] = {"whitening": [], "ten nearest of each": [], "groups": []}
    for n in sizes:
        features = make_features(n)

        def timed(name: str, run: Callable[[], Any]) -> Any:
            start = time.process_time()
            result = run()
            seconds[name].append(time.process_time() - start)
            return result

        unit = timed("whitening", lambda given=features: whitening(given).unit(given))
        similarity, index = timed("ten nearest of each", lambda given=unit: nearest_others(given, K))
        found = timed("groups", lambda given=unit, near=(similarity, index): near_duplicates(given, *near))
    factor = TARGET / n
    print(f"\nCPU seconds of all threads; made features of {DIM} numbers, whitened to {unit.shape[1]}\n")
    columns = " | ".join(f"{n:,}" for n in sizes)
    print(f"| step | {columns} | exponent, last two | exponent, assumed | {TARGET:,} |\n|{'---|' * (len(sizes) + 4)}")
    total = 0.0
    for (name, spent), least in zip(seconds.items(), (1.0, 1.5, 1.0), strict=True):
        seen = math.log(spent[-1] / spent[-2]) / math.log(sizes[-1] / sizes[-2])
        exponent = max(least, seen)
        total += spent[-1] * factor**exponent
        shown = " | ".join(f"{each:.1f}" for each in spent)
        print(f"| {name} | {shown} | {seen:.2f} | {exponent:.2f} | {spent[-1] * factor**exponent:.0f} |")
    sums = " | ".join(f"{sum(each):.1f}" for each in zip(*seconds.values(), strict=True))
    print(f"| all | {sums} | | | {total:.0f} |")
    copies = n // COPIES
    pairs = {(group[0], other) for group in found.groups for other in group[1:]}
    made = {(row, n - copies + row) for row in range(copies)}
    print(f"\nof {n:,} at the threshold {found.threshold:.3f}: {len(pairs & made):,} of {copies:,} copies found")
    print(f"and {len(pairs - made):,} other pairs")
    chosen = permutation(0, (0, 0), n)[:CHECKED]
    start = time.process_time()
    exact = nearest(unit, unit[chosen], K + 1)[0][:, 1:]
    spent = (time.process_time() - start) * n / CHECKED
    right = 100 * ((similarity[chosen] - exact).abs() < 1e-5).float().mean(dim=0)
    print(f"{CHECKED:,} searched exactly: {right[0]:.1f} % have the nearest, {right.mean():.1f} % of ten")
    print(f"all searched exactly: {spent:.0f} CPU seconds, and {spent * factor**2 / 3600:.1f} hours at {TARGET:,}")
    print_faiss(unit.numpy())


def print_faiss(unit: np.ndarray) -> None:
    """The time of the same search by faiss' inverted lists, as many and as many looked into, where it is installed."""
    if find_spec("faiss") is None:
        return
    import faiss

    cells = round(len(unit) ** 0.5)
    start = time.process_time()
    index = faiss.index_factory(unit.shape[1], f"IVF{cells},Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(unit[:: max(1, len(unit) // (64 * cells))])
    index.add(unit)
    index.nprobe = PROBES
    index.search(unit, K + 1)
    print(f"faiss {faiss.__version__}, IVF{cells},Flat, nprobe {PROBES}: {time.process_time() - start:.1f} CPU seconds")


def print_photographs(folder: str, model: str) -> None:
    """What is found of made copies, by kind, at the chosen threshold and at others."""
    source = DataConfig(source=folder, workers=0)
    images = open_encoded(source)
    chosen = permutation(0, (1, 0), len(images))[:CHANGED].tolist()
    with tempfile.TemporaryDirectory() as work:
        kind_of: dict[str, tuple[str, str]] = {}
        for index in range(len(images)):
            path = Path(work) / "images" / f"{index}.png"
            path.parent.mkdir(exist_ok=True)
            os.symlink(os.path.abspath(images.identifier(index)), path)
        for index in chosen:
            with Image.open(images.identifier(index)) as image:
                for number, (kind, change) in enumerate(KINDS.items()):
                    copy = Path(work) / "images" / f"{index}~{number}.png"
                    change(image.convert("RGB")).save(copy)
                    kind_of[str(copy)] = (kind, f"{index}.png")
        data = DataConfig(source=f"{work}/images", workers=0)
        print(f"\n{len(images):,} photographs and {len(kind_of)} copies of {CHANGED} of them, by {model}\n")
        print(f"| threshold | {' | '.join(KINDS)} | copies among all found | others found |")
        print(f"|{'---|' * (len(KINDS) + 3)}")
        for threshold in (None, 0.98, 0.95, 0.9, 0.85, 0.8):
            result = quiet(
                lambda given=threshold: find_duplicates(
                    data, model=model, threshold=given, out=f"{work}/out", progress=False
                )
            )
            found: Counter[str] = Counter()
            other = 0
            for group in result["groups"]:
                names = [group["keep"], *(each["image"] for each in group["leave"])]
                stems = Counter(Path(name).stem.partition("~")[0] for name in names)
                stem = stems.most_common(1)[0][0]
                alike = [name for name in names if Path(name).stem.partition("~")[0] == stem]
                found.update(kind_of[name][0] for name in alike if name in kind_of and len(alike) > 1)
                other += len(names) - len(alike)
            shown = f"{result['threshold']:.3f}" + (", chosen" if threshold is None else "")
            parts = " | ".join(f"{100 * found[kind] / CHANGED:.0f} %" for kind in KINDS)
            total = found.total()
            print(f"| {shown} | {parts} | {100 * total / max(1, total + other):.1f} % | {other} |", flush=True)


def quiet(run: Callable[[], dict]) -> dict:
    with contextlib.redirect_stdout(io.StringIO()):
        return run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="30,000 features")
    parser.add_argument("--photographs", help="a folder of images, some of which get copies")
    parser.add_argument("--model", help="the run by whose features they are found")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        features = make_features(int(arguments.measure))

        def run() -> None:
            unit = whitening(features).unit(features)
            near_duplicates(unit, *nearest_others(unit, K))

        print(resident_bytes(run))
        return
    print(__doc__.partition("\n")[0])
    print(describe_machine(torch.device("cpu")))
    if arguments.photographs:
        print_photographs(arguments.photographs, arguments.model)
        return
    sizes = [15_000, 30_000] if arguments.quick else [50_000, 100_000, 200_000]
    measure(sizes)
    memory = measured_in_new_process(__file__, str(sizes[-1])) / 2**30
    print(f"memory beside the features: {memory:.2f} GiB, half of it or more whitened ones")


if __name__ == "__main__":
    main()
