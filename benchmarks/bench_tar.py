"""Tar shards: time to index them, memory of an index, time to read an image, and time and memory of an epoch's order.

python benchmarks/bench_tar.py                 # indexes 1,000,000 images, opens 10,000,000 rows, permutes up to 10^8
python benchmarks/bench_tar.py --folder DIR    # where 4 GB of shards and 1 GB of an index lie meanwhile
python benchmarks/bench_tar.py --quick         # a hundredth of the images

Images are random bytes that are not decoded, each with a label. Files are in the system's cache.
"""

import argparse
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from machine import describe_machine, resident_bytes

from ssl_core.data.order import Order
from ssl_core.data.shards import shard_at
from ssl_core.data.tar import TarImages, tar_images
from ssl_core.data.tar_index import INDEX_NAME, SCHEMA, Scanned, save_index
from ssl_core.machine import usable_cores
from ssl_core.philox import permutation

IN_SHARD, IMAGE_BYTES, READS = 10_000, 2_000, 20_000
WINDOW = 16


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of one run, and its result."""
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def processor_s() -> float:
    """Seconds of the processors that this process and those that it has started and seen end have taken."""
    return sum(os.times()[:4])


def opened(folder: Path, workers: int) -> TarImages:
    files = sorted(folder.glob("*.tar"))
    return tar_images(files, image_column=None, label_column="label", cache=folder, workers=workers)


def write_shards(folder: Path, number: int) -> None:
    """Shards of small images, and a folder of the images of one of them."""
    content = random.Random(0).randbytes(IMAGE_BYTES)
    (folder / "images").mkdir()
    with tarfile.open(folder / "0000.tar", "w") as tar:
        for image in range(IN_SHARD):
            members = {f"{image:09d}.jpg": content, f"{image:09d}.cls": str(image % 1000).encode()}
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            (folder / "images" / f"{image:09d}.jpg").write_bytes(content)
    for shard in range(1, number):
        shutil.copyfile(folder / "0000.tar", folder / f"{shard:04d}.tar")


def write_index(folder: Path, rows: int) -> None:
    """An index of made shards, which are empty files."""
    columns = [
        pa.array([0] * IN_SHARD),
        pa.array(range(512, 512 + 3584 * IN_SHARD, 3584)),
        pa.array([IMAGE_BYTES] * IN_SHARD),
        pa.array([b"n%08d/n%08d_%06d.JPEG" % (each % 1000, each % 1000, each) for each in range(IN_SHARD)]),
        pa.array([str(each % 1000) for each in range(IN_SHARD)]),
    ]
    columns = [column.cast(field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    scanned = Scanned(pa.RecordBatch.from_arrays(columns, schema=SCHEMA), {})
    paths = [folder / f"train-{number:06d}.tar" for number in range(rows // IN_SHARD)]
    for path in paths:
        path.touch()
    found = [(shard_at(str(path), path.name), scanned) for path in paths]
    save_index(folder / f"{INDEX_NAME}.arrow", found)


def resident() -> tuple[int, int]:
    """Bytes of this process's own memory, and of files that it shares with others."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    own, shared = (1024 * int(fields[name].split()[0]) for name in ("RssAnon", "RssFile"))
    return own, shared


def measure_opening(folder: Path) -> None:
    """Print seconds and memory of opening an index, of its digest, and of looking at images all over it."""
    found = []
    before = resident()
    seconds, images = timed(lambda: opened(folder, 0))
    for name, run in {
        "open it": lambda: None,
        "digest": images.digest,
        f"{READS:,} names": lambda: [*map(images.identifier, random.Random(0).choices(range(len(images)), k=READS))],
    }.items():
        took, _ = timed(run)
        after = resident()
        found.append([name, seconds + took, *(now - then for now, then in zip(after, before, strict=True))])
        seconds = 0.0
    print(json.dumps(found))


def measure_order(kind: str, number: int) -> None:
    """Print seconds and rise in memory of an order of so many images, or of one window of it."""
    order = Order(torch.full((number // IN_SHARD,), IN_SHARD), WINDOW)
    run = {"at random": lambda: permutation(0, (1, 2), number), "a window": lambda: next(order.parts(0, 0))}[kind]
    seconds: list[float] = []
    memory = resident_bytes(lambda: seconds.append(timed(run)[0]))
    print(json.dumps([*seconds, memory]))


def in_new_process(*task: str) -> Any:
    """What a measurement prints that has a process of its own."""
    command = [sys.executable, __file__, "--measure", *task]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="folder to write to; the system's for temporary files by default")
    parser.add_argument("--quick", action="store_true", help="a hundredth of the images")
    parser.add_argument("--measure", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.measure:
        what, *number = arguments.measure
        return measure_order(what, int(number[0])) if number else measure_opening(Path(what))
    scale = 100 if arguments.quick else 1
    print(f"{describe_machine(torch.device('cpu'))}\n")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        (folder / "shards").mkdir()
        write_shards(folder / "shards", 10**6 // IN_SHARD // scale)
        print(f"| {10**6 // scale:,} images of {IMAGE_BYTES:,} bytes, with labels | seconds | of processors |")
        print("|---|---|---|")
        before = processor_s()
        seconds, images = timed(lambda: opened(folder / "shards", 1))
        print(f"| index by {usable_cores()} process(es) | {seconds:.1f} | {processor_s() - before:.1f} |")
        print(f"| open the index | {timed(lambda: opened(folder / 'shards', 0))[0]:.2f} | |")

        numbers = random.Random(0).choices(range(len(images)), k=READS)
        in_tars, _ = timed(lambda: [images.encoded(number) for number in numbers])
        paths = sorted((folder / "shards" / "images").iterdir())
        in_files, _ = timed(lambda: [paths[number % len(paths)].read_bytes() for number in numbers])
        a_read, of_files = (1e6 * seconds / READS for seconds in (in_tars, in_files))
        print(f"\nAn image read at random: {a_read:.0f} us of shards, {of_files:.0f} us of {len(paths):,} files.\n")
        shutil.rmtree(folder / "shards")

        (folder / "made").mkdir()
        write_index(folder / "made", 10**7 // scale)
        size = (folder / "made" / f"{INDEX_NAME}.arrow").stat().st_size
        print(f"| an index of {10**7 // scale:,} images, {size / 1e6:,.0f} MB | seconds | own, MB | of the file, MB |")
        print("|---|---|---|---|")
        for what, seconds, own, shared in in_new_process(str(folder / "made")):
            print(f"| {what} | {seconds:.2f} | {own / 1e6:,.0f} | {shared / 1e6:,.0f} |")
    print(
        f"\nA window is of {WINDOW} shards of {IN_SHARD:,} images.\n"
        "\n| order of an epoch | images | seconds | MB |\n|---|---|---|---|"
    )
    for kind in ("at random", "a window"):
        for number in (10**7, 10**8):
            seconds, memory = in_new_process(kind, str(number // scale))
            print(f"| {kind} | {number // scale:,} | {seconds:.2f} | {memory / 1e6:,.0f} |")


if __name__ == "__main__":
    main()
