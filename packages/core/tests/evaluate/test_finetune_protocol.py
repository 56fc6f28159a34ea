import dataclasses
from pathlib import Path

import pytest

from ssl_core.evaluate import FINETUNE_PROTOCOLS, evaluate_finetune
from ssl_core.evaluate.finetune_protocol import finetune_rate, finetune_text, finetune_views
from ssl_core.train import Step
from ssl_core.views import CenterCrop, HorizontalFlip, RandomCrop, RandomResizedCrop

# Labels, epochs or steps, batch, rates of encoder and layer at the start of the first of the grid, size of the grid;
# as `methods/evaluation.md` has them from papers and codes.
PUBLISHED = {
    "simclr_semi_1": (0.01, 60, 4096, 0.8, 0.8, 1),
    "simclr_semi_10": (0.1, 30, 4096, 0.8, 0.8, 1),
    "byol_semi": (None, 30, 1024, 0.005, 0.005, 10),
    "swav_semi_1": (0.01, 20, 256, 0.02, 5.0, 1),
    "swav_semi_10": (0.1, 20, 256, 0.01, 0.2, 1),
    "clim_semi": (None, 60, 256, 1e-4, 10.0, 1),
    "leoclr_semi_1": (0.01, 60, 256, 0.05, 0.05, 1),
    "leoclr_semi_10": (0.1, 30, 256, 0.05, 0.05, 1),
    "leoclr_fraction": (None, 60, 256, 0.05, 0.05, 1),
    "simclr_transfer": (None, 20_000, 256, 1e-4, 1e-4, 56),
    "ssl_transfer_finetune": (None, 5_000, 64, 0.1, 0.1, 20),
    "kornblith_random": (None, 40_000, 256, 1e-3, 1e-3, 56),
    "supervised_imagenet": (None, 90, 256, 0.1, 0.1, 1),
    "supervised_cifar": (None, 200, 128, 0.1, 0.1, 1),
    "supervised_semi_1": (0.01, 900, 256, 0.1, 0.1, 1),
    "supervised_semi_10": (0.1, 270, 256, 0.1, 0.1, 1),
}


@pytest.mark.parametrize("name", FINETUNE_PROTOCOLS)
def test_a_protocol_has_the_published_numbers(name):
    protocol = FINETUNE_PROTOCOLS[name]
    labels, length, batch_size, encoder, head, size = PUBLISHED[name]
    rate = finetune_rate(protocol, protocol.grid[0], Step(0, 100, 10))
    first = protocol.grid[0]
    assert (protocol.labels, first.epochs or protocol.steps, protocol.batch_size) == (labels, length, batch_size)
    assert (rate, rate * (protocol.lr_head or first.lr) / first.lr) == pytest.approx((encoder, head))
    assert len(protocol.grid) == size


def test_the_text_of_every_protocol_is_known():
    expected = Path(__file__).with_name("finetune_protocols.txt").read_text()
    assert "".join(f"{finetune_text(name, each, 224)}\n" for name, each in FINETUNE_PROTOCOLS.items()) == expected


def test_the_help_names_every_protocol():
    assert [name for name in FINETUNE_PROTOCOLS if name not in evaluate_finetune.__doc__] == []


def test_the_cosine_falls_at_every_step_and_milestones_move_with_the_epochs():
    protocol = dataclasses.replace(FINETUNE_PROTOCOLS["clim_semi"], epochs=(6,))
    rates = [finetune_rate(protocol, protocol.grid[0], Step(index, 12, 2)) for index in range(12)]
    assert rates == pytest.approx([1e-4] * 4 + [1e-5] * 4 + [1e-6] * 4)
    protocol = FINETUNE_PROTOCOLS["simclr_semi_1"]
    rates = [finetune_rate(protocol, protocol.grid[0], Step(index, 4, 4)) for index in range(4)]
    # (1 + cos(pi t / 4)) / 2 of 0.8
    assert rates == pytest.approx([0.8, 0.682843, 0.4, 0.117157], abs=1e-6)


@pytest.mark.parametrize(
    ("name", "size", "train", "test"),
    [
        ("clim_semi", 224, RandomResizedCrop((0.08, 1.0)), CenterCrop(256)),
        ("clim_semi", 32, RandomResizedCrop((0.08, 1.0)), CenterCrop(32)),
        ("ssl_transfer_finetune", 224, RandomResizedCrop(interpolation="bicubic"), CenterCrop(224, "bicubic")),
        ("supervised_cifar", 32, RandomCrop(padding=4), CenterCrop(32)),
    ],
)
def test_crops_are_those_of_the_protocol_and_small_images_are_tested_as_they_are(name, size, train, test):
    views = finetune_views(FINETUNE_PROTOCOLS[name], size)
    assert views[0].ops[-2:] == (train, HorizontalFlip())
    assert views[1].ops == (test,)


@pytest.mark.parametrize("change", [{"epochs": (0,)}, {"lr": (0.1, -1.0)}, {"lr": ()}, {"lr_head": 0.0}])
def test_settings_that_are_not_positive_are_refused(change):
    (name,) = change
    with pytest.raises(ValueError, match=rf"{name} of a fine-tuning must be positive, not "):
        dataclasses.replace(FINETUNE_PROTOCOLS["clim_semi"], **change)
    with pytest.raises(ValueError, match="weight_decay of a fine-tuning must be at least 0"):
        dataclasses.replace(FINETUNE_PROTOCOLS["clim_semi"], weight_decay=(-1e-4,))
