import re
import sys

import pytest
from torchcodec.decoders import decode_jpeg

from ssl_core import jpeg


@pytest.fixture(autouse=True)
def chosen_anew():
    jpeg._chosen.cache_clear()
    yield
    jpeg._chosen.cache_clear()


class Decoders:
    """In place of ``torchcodec.decoders``: has one decoder, or fails to load."""

    def __init__(self, outcome):
        self.outcome = outcome

    def __getattr__(self, name):
        if name == "decode_jpeg" and not isinstance(self.outcome, Exception):
            return self.outcome
        raise self.outcome if name == "decode_jpeg" else AttributeError(name)


def test_torchcodec_decodes_where_it_gives_the_pixels_of_pillow():
    assert jpeg.faster_decoder() is not None
    assert jpeg.description().startswith("TorchCodec ")


def test_pillow_decodes_where_torchcodec_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    assert jpeg.faster_decoder() is None
    assert jpeg.description().endswith("; pip install 'ssl-core[fast]' is faster")


def one_level_more(data, mode):
    pixels = decode_jpeg(data, mode=mode)
    pixels[0, 0, 0] += 1
    return pixels


def no_progressive(data, mode):
    if b"\xff\xc2" in data.numpy().tobytes():
        raise RuntimeError("Unsupported marker type 0xc2\nin a build of few features")
    return decode_jpeg(data, mode=mode)


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (OSError("libcudart.so.13: cannot open shared object file"), "fails: libcudart.so.13: cannot open shared .*"),
        (AttributeError("decode_jpeg"), "fails: cannot import name 'decode_jpeg' .*"),  # before 0.16
        (no_progressive, "fails: Unsupported marker type 0xc2"),
        (one_level_more, r"[\d.]+ gives other pixels"),
    ],
    ids=["library", "version", "features", "pixels"],
)
def test_pillow_decodes_where_torchcodec_cannot_and_doctor_has_the_reason(monkeypatch, outcome, reason):
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", Decoders(outcome))
    assert jpeg.faster_decoder() is None
    assert re.fullmatch(rf"Pillow [\d.]+; TorchCodec {reason}", jpeg.description())
