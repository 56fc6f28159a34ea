import dataclasses
import math

import pytest

from ssl_core.evaluate import PROTOCOLS, evaluation_view, find_protocol, protocol_text
from ssl_core.evaluate.protocol import (
    learning_rate,
    random_crops_text,
    view_for_random_crops,
    view_for_testing,
    view_for_training,
)
from ssl_core.testing import DOUBLE
from ssl_core.views import CenterCrop, HorizontalFlip, RandomCrop, RandomResizedCrop, Resize

# epochs, batch, lr at the start and the end, drops (epochs, factor 0.1), input side, training crop, short side,
# interpolation; as the papers and released codes have them.
PUBLISHED = {
    "moco": (100, 256, 30, 0.3, (60, 80), 224, RandomResizedCrop((0.08, 1.0)), 256, "bilinear"),
    "sce_imagenet": (90, 1024, 0.4, 0, (), 224, RandomResizedCrop((0.08, 1.0)), 256, "bilinear"),
    "sce_small": (100, 256, 30, 0.3, (60, 80), 32, RandomCrop(padding=4), 32, "bilinear"),
    "clsa": (100, 256, 10, 0.01, (), 224, RandomResizedCrop((0.08, 1.0)), 256, "bilinear"),
    "dssl_cifar": (
        *(100, 256, 30, 0.3, (60, 80), 32),
        *(RandomResizedCrop((0.8, 1.0), interpolation="bicubic"), 36, "bicubic"),
    ),
    "leoclr": (
        *(100, 256, 30, 0.3, (60, 80), 224),
        *(RandomResizedCrop((0.08, 1.0), interpolation="bicubic"), 256, "bicubic"),
    ),
    "simsiam": (90, 4096, 1.6, 0, (), 224, RandomResizedCrop((0.08, 1.0)), 256, "bilinear"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_protocol_has_the_published_numbers(name):
    epochs, batch_size, first, last, drops, side, crop, short_side, interpolation = PUBLISHED[name]
    protocol = PROTOCOLS[name]
    assert (protocol.epochs, protocol.batch_size) == (epochs, batch_size)
    rates = [learning_rate(protocol, epoch) for epoch in range(epochs + 1)]
    assert rates[0] == pytest.approx(first)
    assert rates[epochs] == pytest.approx(last, abs=DOUBLE)
    if drops:
        assert tuple(epoch for epoch in range(1, epochs) if rates[epoch] < rates[epoch - 1]) == drops
    else:
        assert rates[epochs // 2] == pytest.approx((first + last) / 2)
    *fit, crop_op, flip = view_for_training(protocol, side).ops
    assert (crop_op, flip) == (crop, HorizontalFlip(0.5))
    assert fit in ([], [CenterCrop()])
    assert view_for_testing(protocol, side).ops == (CenterCrop(short_side, interpolation),)
    assert view_for_testing(protocol, side).sizes == (side,)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_rate_moves_at_every_step_where_the_released_code_does_so(name):
    # SCE's scheduler steps with each batch, all others once an epoch. 7 steps of an epoch.
    protocol = PROTOCOLS[name]
    steps = range(7 * protocol.epochs)
    rates = [learning_rate(protocol, step / 7) for step in steps]
    if name == "sce_imagenet":
        expected = [0.2 * (1 + math.cos(math.pi * step / len(steps))) for step in steps]
    else:
        expected = [rates[step - step % 7] for step in steps]
    assert rates == pytest.approx(expected)


def test_every_protocol_but_our_own_is_published():
    assert set(PROTOCOLS) - set(PUBLISHED) == {"cached"}


def test_only_simsiam_uses_lars():
    assert [name for name, protocol in PROTOCOLS.items() if protocol.optimizer == "lars"] == ["simsiam"]


def test_a_protocol_for_224_pixels_says_what_it_means_for_32():
    assert protocol_text("moco", PROTOCOLS["moco"], 32).splitlines()[2:] == [
        "  train: random resized crop 32 of area 0.08 to 1 (bilinear), flip",
        "  test: short side 37 (bilinear), center crop 32",
    ]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("simsiam", "90 epochs, batch 4096, lars, lr 1.6 (0.1 x 4096 / 256), cosine to 0"),
        ("clsa", "100 epochs, batch 256, sgd, lr 10, cosine to 0.01"),
        ("sce_imagenet", "90 epochs, batch 1024, sgd, lr 0.4 (0.1 x 1024 / 256), cosine to 0, at every step"),
        ("sce_small", "train: short side 32, padded by 4, random crop 32, flip"),
        ("cached", "train: as test, features extracted once"),
    ],
)
def test_the_text_says_what_is_done(name, line):
    assert f"  {line}\n" in protocol_text(name, PROTOCOLS[name], 32)


def test_random_crops_are_cut_from_the_image_squashed_to_256_for_an_input_of_224():
    view = view_for_random_crops(PROTOCOLS["leoclr"], "random", 224)
    assert view.ops == (Resize(256, "bicubic"), RandomResizedCrop((0.2, 1.0), interpolation="bicubic"))
    assert view.sizes == (224,)
    assert random_crops_text(view) == "resized to 256 x 256 (bicubic), random resized crop 224 of area 0.2 to 1"


def test_random_crops_of_small_images_keep_the_proportion_of_256_to_224():
    # Whatever the protocol does before its center crop: sce_small does not enlarge, and would leave nothing to cut.
    view = view_for_random_crops(PROTOCOLS["sce_small"], "random_window", 32)
    assert (view.ops, view.sizes) == ((Resize(37), RandomCrop()), (32,))
    assert random_crops_text(view) == "resized to 37 x 37 (bilinear), random crop 32"


def test_an_unknown_protocol_lists_the_known():
    with pytest.raises(ValueError, match=r"no protocol 'mocov2'; choose one of moco, sce_imagenet, .*cached"):
        find_protocol("mocov2")


@pytest.mark.parametrize("change", [{"epochs": 0}, {"batch_size": -1}, {"lr": 0.0}])
def test_settings_that_are_not_positive_are_refused(change):
    (name,) = change
    with pytest.raises(ValueError, match=f"{name} of a linear probe must be positive, not {change[name]}"):
        dataclasses.replace(PROTOCOLS["moco"], **change)


def test_the_cached_protocol_sees_images_as_knn_does():
    for size in (32, 224):
        assert view_for_training(PROTOCOLS["cached"], size) == evaluation_view(size)
        assert view_for_testing(PROTOCOLS["cached"], size) == evaluation_view(size)
