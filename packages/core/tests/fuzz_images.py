"""Damaged files of every format: each is read, or refused in one line, within seconds and in bounded memory.

    nox -s fuzz_images -- --seed 3 --number 20000

What is damaged, and how, the seed and the file's number decide. Files are opened in processes whose address space is
limited. What is neither read nor refused so is kept in a folder, listed in the end, and makes the exit status 1.
"""

import argparse
import contextlib
import io
import multiprocessing
import os
import random
import sys
import tempfile
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from image_files import FILES, HEIGHT, WIDTH, npy, run_lengths, smooth, through_pillow, tiff
from PIL import Image

from ssl_core.data import BrokenImageError, DataConfig, decode_image, pixels
from ssl_core.data.config import open_encoded
from ssl_core.data.decode import suffixes

LIMIT_S = 5.0
START_S = 120.0  # in which a process imports what decodes
# In place of 1 GiB, so that an image which may be that large does not pass for a hang; and for what copies it.
IMAGE_BYTES, MEMORY_BYTES = 2**27, 2**31
LONGEST_MESSAGE = 300  # characters
# What was not refused before memory was asked for; libheif's own limit is "Security limit exceeded".
OUT_OF_MEMORY = ("MemoryError", "bad_alloc", "allocate", "out of memory", "malloc")

TABLES = ("parquet", "csv", "tsv", "txt")
# Formats with many ways to write them come more often.
WEIGHTS = {"TIFF": 6, "PNG": 2, "JPEG": 2, "WebP": 2, "HEIC": 2, "AVIF": 2, "JPEG 2000": 2, "parquet": 2}
# Of sizes and counts, those at which programs err.
NUMBERS = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 40_000, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]


def by_pillow(format, mode="RGB", **options):
    return through_pillow(Image.fromarray(smooth(3)).convert(mode), format, **options)


def oriented(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def interlaced_png():
    """A PNG in the seven passes of Adam7, which Pillow cannot write."""
    first_and_step = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    passes = [smooth(3)[row::rows, column::columns] for row, column, rows, columns in first_and_step]
    rows = b"".join(b"\0" + row.tobytes() for each in passes for row in each)
    header = WIDTH.to_bytes(4) + HEIGHT.to_bytes(4) + bytes([8, 2, 0, 0, 1])
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return with_checksums(
        b"\x89PNG\r\n\x1a\n" + b"".join(len(data).to_bytes(4) + kind + data + bytes(4) for kind, data in chunks)
    )


def shard(**options):
    images = [by_pillow(format) for format in ("PNG", "JPEG", "GIF", "WEBP")]
    columns = {"image": [{"bytes": image, "path": None} for image in images], "label": ["a", "b", "a", None]}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, **options)
    return buffer.getvalue()


def undamaged_files():
    """Content of files by format and name: those of the tables in docs/data.md, and further ways to write them."""
    frames = {"save_all": True, "append_images": [Image.fromarray(smooth(3)[::-1])]}
    has_avif = ".avif" in suffixes()
    files = {name: make()[0] for name, make in FILES.items() if has_avif or not name.startswith("AVIF")}
    files |= {
        "JPEG, progressive": by_pillow("JPEG", progressive=True),
        "JPEG, turned": by_pillow("JPEG", exif=oriented(6)),
        "JPEG, restarts": by_pillow("JPEG", restart_marker_blocks=1),
        "PNG, interlaced": interlaced_png(),
        "PNG, turned": by_pillow("PNG", exif=oriented(5)),
        "PNG, animated": by_pillow("PNG", **frames),
        "GIF, animated": by_pillow("GIF", **frames),
        "BMP, bilevel": by_pillow("BMP", "1"),
        "BMP, RGBA": by_pillow("BMP", "RGBA"),
        "BMP, run lengths": run_lengths(8, 2),
        "WebP, animated": by_pillow("WEBP", **frames),
        "WebP, turned": by_pillow("WEBP", exif=oriented(8)),
        "PPM, plain": b"P3 2 2 255 " + b"7 8 9 " * 4,
        "PPM, plain bilevel": b"P1 4 2 0 1 0 1 1 0 1 0",
        "PPM, floating point": b"Pf 4 2 -1.0\n" + bytes(32),
        "JPEG 2000, tiles": by_pillow("JPEG2000", tile_size=(8, 8)),
        "TIFF, faxed": by_pillow("TIFF", "1", compression="group4"),
        ".npy, Fortran": npy(np.asfortranarray(smooth(3)))[0],
        "parquet, plain": shard(use_dictionary=False, compression="none"),
        "parquet, groups": shard(row_group_size=2, compression="zstd"),
        "csv, header": b'path,label\n0.png,cat\n1.png,dog\n"0.png","cat, big"\n',
        "csv, semicolons": b"1.png;0\n0.png;1\n",
        "tsv, header": b"label\tfile\n3\t0.png\n4\t1.png\n",
        "txt, labels": b"0.png 0\n1.png 1\n",
        "txt, UTF-16": "0.png\n1.png\tcat\n".encode("utf-16"),
    }
    if has_avif:
        files |= {"AVIF, animated": by_pillow("AVIF", **frames), "AVIF, turned": by_pillow("AVIF", exif=oriented(3))}
    for codec in ("packbits", "tiff_lzw", "tiff_adobe_deflate", "jpeg"):
        files[f"TIFF, RGB, {codec}"] = by_pillow("TIFF", compression=codec)
    for codec in ("lzw", "zstd", "lzma", "deflate", "packbits", "jpeg2000", "png", "lerc"):
        files[f"TIFF, 2 bands, {codec}"] = tiff(2, np.uint16, compression=codec)[0]
    for codec in ("lzma", "zstd", "jpegxl", "jpegxr", "webp"):
        files[f"TIFF, RGB, {codec}"] = tiff(3, compression=codec, photometric="rgb")[0]
    by_format = {}
    for name, content in files.items():
        by_format.setdefault(name.split(",")[0], {})[name] = content
    return by_format


def with_checksums(png):
    """A PNG whose chunks have right checksums, so that what is in them is looked at."""
    data, position = bytearray(png), 8
    while (end := position + 8 + int.from_bytes(data[position : position + 4])) + 4 <= len(data):
        data[end : end + 4] = zlib.crc32(data[position + 4 : end]).to_bytes(4)
        position = end + 4
    return bytes(data)


def with_footer_length(shard, footer_bytes):
    """A shard whose end says how long its footer is, so that what is in that is looked at."""
    return shard[:-8] + footer_bytes.to_bytes(4, "little") + b"PAR1"


def varint(number):
    """A number in groups of 7 bits, as Thrift writes it, in the footer of a shard."""
    groups = [number >> shift & 0x7F for shift in range(0, max(number.bit_length(), 1), 7)]
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])


def damaged(content, other, draw):
    """Content cut, flipped and spliced with another, by a ``random.Random``; mostly at its ends, where sizes are."""
    data = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 4, 8])):
        start = draw.choice([0, 0, max(0, len(data) - 200), draw.randrange(len(data) + 1)])
        position = draw.randrange(start, min(start + 200, len(data)) + 1)
        size = draw.choice([1, 2, 4, 8])
        match draw.choice(["byte", "bit", "number", "number", "cut", "spliced", "repeated"]):
            case "byte":
                data[position : position + 1] = draw.randbytes(1)
            case "bit" if position < len(data):
                data[position] ^= 1 << draw.randrange(8)
            case "number":
                number = draw.choice(NUMBERS)
                if draw.random() < 0.3:
                    data[position : position + 1] = varint(number)
                else:
                    number %= 2 ** (8 * size)
                    data[position : position + size] = number.to_bytes(size, draw.choice(["big", "little"]))
            case "cut":
                del data[position : position + draw.choice([1, size, 50, len(data)])]
            case "spliced":
                begin = draw.randrange(len(other) + 1)
                data[position : position + draw.choice([0, size, 60])] = other[begin : begin + draw.choice([size, 60])]
            case "repeated":
                data[position:position] = data[position : position + draw.choice([1, 4, 60])] * draw.choice([1, 20])
    return bytes(data)


def damaged_file(by_format, seed, number):
    """Format, name, content and the number of channels to ask for."""
    draw = random.Random(f"{seed} {number}")
    formats = [format for format in by_format for _ in range(WEIGHTS.get(format, 1))]
    format = formats[number % len(formats)]
    name, other = draw.choice(list(by_format[format])), draw.choice(list(by_format[draw.choice(formats)].values()))
    data = damaged(by_format[format][name], other, draw)
    if format == "PNG" and draw.random() < 0.7:
        data = with_checksums(data)
    if format == "parquet" and draw.random() < 0.7:
        original = by_format[format][name]
        footer_bytes = int.from_bytes(original[-8:-4], "little") + len(data) - len(original)
        data = with_footer_length(data, max(0, footer_bytes))
    return format, name, data, draw.choice([None, 1, 3, 4])


def verdict(format, data, channels, folder):
    """``read`` or ``broken``, and what is wrong with how a file was refused; empty for nothing."""
    try:
        if format in TABLES:
            path = Path(folder, f"damaged.{format}")
            path.write_bytes(data)
            images = open_encoded(DataConfig(source=str(path), workers=0, channels=channels or 3))
            for index in range(len(images)):
                with contextlib.suppress(BrokenImageError):
                    images.image(index)
        else:
            decode_image(data, channels, at_least=channels and 4, identifier="a")
    except BrokenImageError as error:
        return "broken", wrong(str(error))
    except (ValueError, OSError) as error:
        return "broken", wrong(str(error)) if format in TABLES else f"{type(error).__name__}: {error}"
    except BaseException as error:
        return "broken", f"{type(error).__name__}: {error}"
    return "read", ""


def wrong(message):
    is_memory = any(word in message for word in OUT_OF_MEMORY)
    if "\n" in message or not 0 < len(message) < LONGEST_MESSAGE or is_memory:
        return f"message of {len(message)} characters: {message[:500]!r}"
    return ""


def write_listed(folder):
    """The images that list files name."""
    for number in range(2):
        Path(folder, f"{number}.png").write_bytes(by_pillow("PNG"))


def open_files(connection, folder):
    """The work of a process."""
    import resource  # of Unix only

    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pixels.MAX_BYTES = IMAGE_BYTES
    connection.send(None)
    with contextlib.suppress(EOFError):  # nobody asks any more
        while True:
            connection.send(verdict(*connection.recv(), folder))


class Opener:
    """A process that opens files, and another one when it is lost."""

    def __init__(self, folder):
        write_listed(folder)
        self._folder, self._process = folder, None

    def __call__(self, format, data, channels):
        if self._process is None:
            context = multiprocessing.get_context("forkserver")
            self._connection, theirs = context.Pipe()
            self._process = context.Process(target=open_files, args=(theirs, self._folder), daemon=True)
            self._process.start()
            theirs.close()
            assert self._connection.poll(START_S), f"a process did not start in {START_S:g} s"
            self._connection.recv()
        before = time.monotonic()
        self._connection.send((format, data, channels))
        try:
            is_done = self._connection.poll(LIMIT_S)
            outcome = self._connection.recv() if is_done else self._lost(f"not done in {LIMIT_S:g} s")
        except (EOFError, ConnectionError):
            self._process.join()
            outcome = self._lost(f"its process ended with {self._process.exitcode}")
        return *outcome, time.monotonic() - before

    def _lost(self, reason):
        self._process.kill()
        self._process.join()
        self._process = None
        return "lost", reason


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--number", type=int, default=100_000, help="of files")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    multiprocessing.set_forkserver_preload(["torch", "pyarrow.parquet", "ssl_core.data.config"])
    by_format = undamaged_files()
    kept = Path(tempfile.gettempdir(), f"fuzz_images-{arguments.seed}")
    started = time.monotonic()

    def open_every(first, folder):
        opener, counts, slowest = Opener(folder), Counter(), (0.0, "")
        for number in range(first, arguments.number, arguments.processes):
            format, name, data, channels = damaged_file(by_format, arguments.seed, number)
            outcome, problem, seconds = opener(format, data, channels)
            slowest = max(slowest, (seconds, f"{number} ({name})"))
            counts[format, outcome] += 1
            if problem:
                kept.mkdir(exist_ok=True)
                (kept / str(number)).write_bytes(data)
                counts[format, "wrong"] += 1
                print(f"{number} ({name}), {channels} channels: {problem}", flush=True)
        return counts, slowest

    with contextlib.ExitStack() as stack:
        folders = [stack.enter_context(tempfile.TemporaryDirectory()) for _ in range(arguments.processes)]
        pool = stack.enter_context(ThreadPoolExecutor(arguments.processes))
        results = list(pool.map(open_every, range(arguments.processes), folders))
    counts = sum((each for each, _ in results), Counter())
    for format in by_format:
        print(f"{format}: {counts[format, 'read']} read, {counts[format, 'broken']} broken", end="; ")
    seconds, slowest = max(each for _, each in results)
    num_wrong = sum(count for (_, outcome), count in counts.items() if outcome == "wrong")
    print(
        f"\n{arguments.number} files of seed {arguments.seed} in {time.monotonic() - started:.0f} s; "
        f"the longest took {seconds:.2f} s: {slowest}; {num_wrong} wrong" + (f", kept in {kept}" if num_wrong else "")
    )
    return 1 if num_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
