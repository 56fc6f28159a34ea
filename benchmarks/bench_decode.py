"""Processor time to decode a JPEG: TorchCodec (the extra ``fast``) against Pillow, as ``decode_image`` takes them.

python benchmarks/bench_decode.py                    # scikit-learn's two photographs, at several sizes
python benchmarks/bench_decode.py --images FOLDER    # and fifty JPEGs of each folder, as they are

One thread, in turns, seconds of the processor and not of the clock. The pixels of both are compared too.
"""

import argparse
import io
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from machine import describe_machine
from PIL import Image
from sklearn.datasets import load_sample_images

from ssl_core import jpeg
from ssl_core.data import decode, decode_image

TURN_S = 0.25


def cases(folders: Sequence[str]) -> Iterator[tuple[str, list[bytes]]]:
    """Names and files: some of each folder, and the photographs in ways that data sets have them."""
    for folder in folders:
        files = sorted(file for file in Path(folder).rglob("*") if file.suffix.lower() in (".jpg", ".jpeg"))
        files = random.Random(0).sample(files, min(50, len(files)))
        yield f"{len(files)} of {Path(folder).name}", [file.read_bytes() for file in files]
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    tiled = [Image.fromarray(np.tile(photograph, (4, 4, 1))) for photograph in photographs]
    small = [photograph.resize((500, 334)) for photograph in photographs]
    yield "500 x 334", [encoded(image) for image in small]
    yield "500 x 334, progressive", [encoded(image, progressive=True) for image in small]
    yield "500 x 334, colors not halved", [encoded(image, subsampling="4:4:4") for image in small]
    yield "500 x 334, gray", [encoded(image.convert("L")) for image in small]
    yield "128 x 85", [encoded(image.resize((128, 85))) for image in photographs]
    yield "2560 x 1708, 16 photographs in one", [encoded(image) for image in tiled]


def encoded(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()


def seconds(files: Sequence[bytes], turn_s: float) -> float:
    """Processor time of one file."""
    decoded, start = 0, time.process_time()
    while time.process_time() - start < turn_s:
        for file in files:
            decode_image(file)
        decoded += len(files)
    return (time.process_time() - start) / decoded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", nargs="*", default=[], help="folders of JPEGs")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="one short turn of each")
    arguments = parser.parse_args()
    fast = jpeg.faster_decoder()
    if fast is None:
        parser.error(f"there is nothing to compare: {jpeg.description()}")
    torch.set_num_threads(1)
    repeats, turn_s = (1, TURN_S / 10) if arguments.quick else (arguments.repeats, TURN_S)
    print(f"{describe_machine(torch.device('cpu'))}\n{jpeg.description()}\n")
    print("| JPEGs | KB | Pillow, ms | TorchCodec, ms | images / s | faster by (each turn) | other pixels |")
    print("|---|---|---|---|---|---|---|")
    for name, files in cases(arguments.images):
        times: dict[bool, list[float]] = {False: [], True: []}
        pixels: dict[bool, list[torch.Tensor]] = {}
        for repeat in range(repeats + 1):
            for is_fast in times:
                decode.faster_decoder = lambda is_fast=is_fast: fast if is_fast else None
                if repeat == 0:
                    pixels[is_fast] = [decode_image(file) for file in files]
                else:
                    times[is_fast].append(seconds(files, turn_s))
        ratios = [slow / quick for slow, quick in zip(times[False], times[True], strict=True)]
        ours, theirs = (statistics.median(times[is_fast]) for is_fast in (True, False))
        others = sum(not torch.equal(*pair) for pair in zip(pixels[False], pixels[True], strict=True))
        print(
            f"| {name} | {sum(map(len, files)) / len(files) / 1e3:.0f} | {1e3 * theirs:.2f} | {1e3 * ours:.2f} "
            f"| {1 / ours:,.0f} | {theirs / ours:.2f}x ({min(ratios):.2f} to {max(ratios):.2f}) | {others} |"
        )


if __name__ == "__main__":
    main()
