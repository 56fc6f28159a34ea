"""The decoder of plain JPEGs: TorchCodec (the extra ``fast``), where it gives the pixels of Pillow; else Pillow.

Both decode by libjpeg-turbo, but each brings its own build, and some builds of Pillow have another library with other
pixels. So TorchCodec is taken only where it agrees with Pillow on a few small JPEGs, which are made and decoded once.
"""

import functools
import importlib.util
import io
from collections.abc import Callable, Iterator
from importlib.metadata import version

import numpy as np
import PIL
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor


def faster_decoder() -> Callable[[bytes], UInt8[Tensor, "c h w"]] | None:
    """The decoder of JPEGs that is faster than Pillow and gives the same pixels; None if there is none."""
    return _chosen()[0]


def description() -> str:
    """The decoder of JPEGs in words, for ``ssl-core doctor``."""
    return _chosen()[1]


@functools.cache
def _chosen() -> tuple[Callable[[bytes], Tensor] | None, str]:
    pillow = f"Pillow {PIL.__version__}"
    if importlib.util.find_spec("torchcodec") is None:
        return None, f"{pillow}; pip install 'ssl-core[fast]' is faster"
    try:
        from torchcodec.decoders import decode_jpeg

        def decode(data: bytes) -> Tensor:
            # A copy that can be written to: of others torch warns.
            pixels: Tensor = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode="UNCHANGED")
            return pixels

        is_same = all(torch.equal(decode(data), _by_pillow(data)) for data in _samples())
    # Of another CUDA or an older version: it is built for one torch, and before 0.16 it knew no JPEGs.
    except (ImportError, OSError, RuntimeError) as error:
        return None, f"{pillow}; TorchCodec fails: {str(error).strip().partition(chr(10))[0]}"
    name = f"TorchCodec {version('torchcodec')}"
    return (decode, f"{name}, the pixels of {pillow}") if is_same else (None, f"{pillow}; {name} gives other pixels")


def _by_pillow(data: bytes) -> Tensor:
    return torch.from_numpy(np.atleast_3d(np.array(Image.open(io.BytesIO(data))))).permute(2, 0, 1)


def _samples() -> Iterator[bytes]:
    """Gray, RGB in each sampling of colors, and the first scan of a progressive JPEG, which decoders smooth."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 43, 3), np.uint8))
    yield _encoded(noise.convert("L"))
    for sampling in ("4:4:4", "4:2:2", "4:2:0"):
        yield _encoded(noise, subsampling=sampling)
    progressive = _encoded(noise, progressive=True)
    second = progressive.index(b"\xff\xc4", progressive.index(b"\xff\xda"))  # its tables, behind the first scan
    yield progressive[:second] + b"\xff\xd9"


def _encoded(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()
