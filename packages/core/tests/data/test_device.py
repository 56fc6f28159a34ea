"""Images and batches on a device; without a GPU all but the streams, with the CPU in its place."""

import contextlib
from collections import namedtuple
from unittest.mock import Mock

import pytest
import torch

from ssl_core.data import LazyImages, MemoryImages
from ssl_core.data.device import held_on, prefetched_on
from ssl_core.views import unpack_images

Made = namedtuple("Made", ["views", "number"])
CPU = torch.device("cpu")


def numbered(count, log, device=CPU):
    for number in range(count):
        log.append(f"make {number}")
        yield Made((torch.full((3,), number, device=device),), number)


def test_each_batch_is_begun_before_the_one_before_it_is_used():
    log = []
    for batch in prefetched_on(CPU, numbered(3, log)):
        log.append(f"use {batch.number}")
    assert log == ["make 0", "make 1", "use 0", "make 2", "use 1", "use 2"]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_no_batch_is_lost(count):
    assert [batch.number for batch in prefetched_on(CPU, numbered(count, []))] == list(range(count))


def test_all_epochs_are_made_on_one_stream(monkeypatch):
    device, streams = torch.device("cuda", 7), Mock(return_value=Mock(spec=torch.cuda.Stream))
    streams.return_value.record_event.return_value = None
    monkeypatch.setattr(torch.cuda, "Stream", streams)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    for _ in range(2):
        assert len(list(prefetched_on(device, iter([Made((), 0)])))) == 1
    assert streams.call_count == 1


def images(count, *shape):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, *shape), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    "source",
    [
        MemoryImages("one tensor", images(4, 3, 5, 6), torch.full((4,), -1)),
        MemoryImages("a list", [images(3, 5, 6 + index) for index in range(4)], torch.full((4,), -1)),
        MemoryImages("gray", images(4, 1, 5, 6), torch.full((4,), -1), channels=3),
    ],
    ids=lambda source: source.name,
)
def test_images_in_memory_are_held_whole(source):
    held = held_on(CPU, source)
    for index, image in enumerate(unpack_images(held)):
        assert torch.equal(image, source.image(index))


def test_images_that_are_decoded_when_needed_are_not_held():
    assert held_on(CPU, LazyImages(MemoryImages("four", images(4, 3, 5, 6), torch.full((4,), -1)))) is None


@pytest.mark.parametrize(
    ("pixels", "channels", "num_bytes"),
    [
        (images(4, 3, 5, 6), None, 360),
        (images(4, 1, 5, 6), 3, 360),
        ([*images(3, 3, 5, 6), torch.zeros(3, 5, 6)], None, 1440),  # packed, all are floating
    ],
    ids=["one tensor", "gray", "a list"],
)
def test_images_of_more_than_a_quarter_of_the_free_memory_are_not_held(monkeypatch, pixels, channels, num_bytes):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * num_bytes - 1, 8 * num_bytes))
    source = MemoryImages("four", pixels, torch.full((4,), -1), channels=channels)
    assert held_on(torch.device("cuda"), source) is None
    assert held_on(CPU, source).pixels.nbytes == num_bytes


@pytest.mark.gpu
def test_what_a_gpu_makes_ahead_is_whole_when_it_is_used_and_until_then():
    device = torch.device("cuda")
    busy = torch.randn(2048, 2048, device=device)

    def made():
        for number in range(30):
            late = (busy @ busy)[0, 0]  # so that a consumer that does not wait reads something else
            yield Made((torch.full((1 << 20,), float(number), device=device) + 0 * late,), number)

    wrong = []
    for batch in prefetched_on(device, made()):
        torch.cuda._sleep(2_000_000)  # a late consumer, whose batch must not be written again
        wrong.append((batch.views[0] != batch.number).sum())
        del batch
    assert torch.stack(wrong).sum().item() == 0
