import io
import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image


def noise(*shape, seed=0, dtype=np.uint8):
    high = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, high, shape, dtype=dtype, endpoint=True)


def encoded(pixels, format="PNG", **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_16bit(pixels):
    """A PNG of 16-bit (h w c) pixels, which Pillow cannot write for several channels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, channels = pixels.shape
    color = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff_16bit(pixels):
    """An uncompressed TIFF of 16-bit (h w c) pixels, which Pillow cannot write for several channels."""
    height, width, channels = pixels.shape
    directory, bits, strip = 8, 8 + 2 + 12 * 9 + 4, 8 + 2 + 12 * 9 + 4 + 2 * channels
    entries = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, channels, bits),  # bits a channel, stored elsewhere
        (259, 4, 1, 1),  # not compressed
        (262, 4, 1, 2),  # RGB
        (273, 4, 1, strip),
        (277, 4, 1, channels),
        (278, 4, 1, height),
        (279, 4, 1, pixels.nbytes),
    ]
    return (
        struct.pack("<2sHIH", b"II", 42, directory, len(entries))
        + b"".join(struct.pack("<HHII", *entry) for entry in entries)
        + struct.pack(f"<I{channels}H", 0, *[16] * channels)
        + pixels.astype("<u2").tobytes()
    )


def write_images(folder, names, size=8):
    """A color PNG under each name, each with pixels of its own."""
    for seed, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(noise(size, size, 3, seed=seed)))


@pytest.fixture(params=["reference", "auto"])
def renderer(request):
    """Each renderer of the CPU; auto takes the compiled one where there is one."""
    return request.param


@pytest.fixture
def make():
    """The functions of this file: with pytest's importlib mode, test modules cannot import each other."""
    return SimpleNamespace(
        noise=noise, encoded=encoded, png_16bit=png_16bit, tiff_16bit=tiff_16bit, write_images=write_images
    )
