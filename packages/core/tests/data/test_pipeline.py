"""Where images are packed and views rendered; the device's plumbing is tested with the reference in its place."""

import pytest
import torch

from ssl_core.data import LazyImages, MemoryImages, pipeline
from ssl_core.data.pipeline import Pipeline, Request
from ssl_core.views import ViewConfig, make_view_specs, render_views

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
SPECS = make_view_specs(
    [
        ViewConfig("weak", size=8, partner=True),
        ViewConfig("weak", size=4, partner=True, share_crop_with=0),
        ViewConfig("strong", size=[6, 8]),
        ViewConfig("ra_2_5", size=[6, 8], derived_from=2),
        ViewConfig("weak", size=10, partner=True, share_crop_with=0),
    ]
)
REQUESTS = [Request(2, [4, 0, 7]), Request(2, [1, 2, 3], [5, 5, 0])]


def noise(count, height, width):
    generator = torch.Generator().manual_seed(height * width)
    return torch.randint(256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


SOURCES = {
    "one tensor": MemoryImages("noise", noise(8, 9, 10), torch.full((8,), -1)),
    "a list": MemoryImages("noise", [noise(1, 9 + index, 10)[0] for index in range(8)], torch.full((8,), -1)),
}
SOURCES["decoded when needed"] = LazyImages(SOURCES["a list"])


def make(source, **changes):
    options = {"seed": 3, "mean": MEAN, "std": STD, "workers": 0, "renderer": "reference"}
    return Pipeline(source, SPECS, REQUESTS, num_batches=2, batch_size=3, **(options | changes))


def assert_same(first, second):
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.index, other.index)
        assert len(one.views) == len(other.views)
        assert all(torch.equal(a, b) for a, b in zip(one.views, other.views, strict=True))


@pytest.fixture
def on_device(monkeypatch):
    """The renderer ``device`` as the reference on the CPU."""

    def render(*arguments, renderer, **options):
        return render_views(*arguments, renderer="reference" if renderer == "device" else renderer, **options)

    monkeypatch.setattr(pipeline, "choose_renderer", lambda name, device, specs: name)
    monkeypatch.setattr(pipeline, "render_views", render)


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_device_draws_the_same_views(on_device, source, workers):
    with_device = make(source, renderer="device", workers=workers)
    assert_same(make(source), with_device)
    assert_same(make(source), with_device)  # a second pass


def test_images_that_live_on_the_device_need_no_workers(on_device):
    made = make(SOURCES["one tensor"], renderer="device", workers=2)
    assert made.held_bytes == 8 * 3 * 9 * 10
    assert made._loader._loader.num_workers == 0
    made = make(SOURCES["decoded when needed"], renderer="device", workers=2)
    assert made.held_bytes == 0
    assert made._loader._loader.num_workers == 2


def test_what_leaves_a_worker_for_the_device_is_its_batch_alone(on_device, monkeypatch):
    monkeypatch.setattr(pipeline, "held_on", lambda device, source: None)  # the set is too large
    made = make(SOURCES["one tensor"], renderer="device", workers=1)
    assert_same(make(SOURCES["one tensor"]), made)
    assert [packed.parts[0].pixels.numel() for packed in made._loader] == [3 * 3 * 9 * 10] * 2


def test_views_of_partners_keep_their_places(renderer):
    alone, paired = make(SOURCES["a list"], renderer=renderer)
    assert [view.shape[-1] for view in alone.views] == [6, 8, 6, 8]
    assert [view.shape[-1] for view in paired.views] == [8, 4, 6, 8, 6, 8, 10]


def test_images_of_another_number_of_channels_than_the_encoders_are_refused(renderer):
    gray = MemoryImages("gray", noise(8, 9, 10)[:, :1], torch.full((8,), -1))
    with pytest.raises(ValueError, match=r"gray:4 has 1 channels but the encoder takes 3; set data\.channels to 3"):
        list(make(gray, renderer=renderer))


@pytest.mark.gpu
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_gpu_draws_the_same_views_within_rounding(source, workers):
    on_gpu = make(source, renderer="device", device="cuda", workers=workers)
    for expected, found in zip(make(source), on_gpu, strict=True):
        assert torch.equal(expected.index, found.index)
        for one, other in zip(expected.views, found.views, strict=True):
            # Far more than float32's rounding makes, and far less than a level; a level that rounds to the other side
            # of a cut may be far off, and hardly any pixel of an image of noise lies within rounding of one.
            assert ((other.cpu() - one).abs() > 1e-4).double().mean() < 0.05
