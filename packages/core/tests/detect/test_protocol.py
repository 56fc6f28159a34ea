from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from ssl_core.detect.protocol import (
    DETECTION_PROTOCOLS,
    detection_optimizer,
    detection_rate,
    detection_text,
)
from ssl_core.evaluate.plan import choose_protocol
from ssl_core.train import Step

# Iterations, steps of a smaller rate, rate, warm-up, first and last short side, long side, detector, masks, as
# `methods/evaluation.md` has them from papers and codes.
PUBLISHED = {
    "voc0712_c4_24k": (24_000, [18_000, 22_000], 0.02, 100, 480, 800, 1333, "c4", False),
    "coco_c4_1x": (90_000, [60_000, 80_000], 0.02, 1000, 640, 800, 1333, "c4", True),
    "coco_c4_2x": (180_000, [120_000, 160_000], 0.02, 1000, 640, 800, 1333, "c4", True),
    "coco_c4_triplet": (180_000, [], 0.05, 10_000, 640, 880, 1200, "c4", True),
    "coco_fpn_1x": (90_000, [60_000, 80_000], 0.02, 1000, 640, 800, 1333, "fpn", True),
    "coco_fpn_2x": (180_000, [120_000, 160_000], 0.02, 1000, 640, 800, 1333, "fpn", True),
    "lvis_fpn_90k": (90_000, [60_000, 80_000], 0.02, 1000, 640, 800, 1333, "fpn", True),
    "lvis_fpn_180k": (180_000, [120_000, 160_000], 0.02, 1000, 640, 800, 1333, "fpn", True),
}


@pytest.mark.parametrize("name", DETECTION_PROTOCOLS)
def test_a_protocol_has_the_published_numbers(name):
    protocol = DETECTION_PROTOCOLS[name]
    detector = protocol.detector
    assert PUBLISHED[name] == (
        protocol.iterations,
        protocol.milestone_steps,
        protocol.lr,
        protocol.warmup_steps,
        protocol.short_sides[0],
        protocol.short_sides[-1],
        protocol.long_side,
        detector.features,
        detector.masks,
    )
    assert (protocol.batch_size, protocol.weight_decay, protocol.test_sides) == (16, 1e-4, (800, 1333))
    assert protocol.precise_batch_norm == 200
    is_lvis = protocol.images == "lvis"
    assert (detector.score_threshold, detector.detections) == ((1e-4, 300) if is_lvis else (0.05, 100))
    assert protocol.repeat_threshold == (1e-3 if is_lvis else None)
    is_c4 = detector.features == "c4"
    assert detector.train_proposals == ((12_000, 2_000) if is_c4 else (2_000, 1_000))
    assert detector.test_proposals == ((6_000, 1_000) if is_c4 else (1_000, 1_000))
    assert (detector.anchors, detector.regions, detector.channels) == ((32, 64, 128, 256, 512), 512, 256)


def test_the_text_of_every_protocol_is_known():
    expected = Path(__file__).with_name("detection_protocols.txt").read_text()
    assert "".join(f"{detection_text(name, each)}\n" for name, each in DETECTION_PROTOCOLS.items()) == expected


def rates(name, at, **changes):
    protocol = replace(DETECTION_PROTOCOLS[name], **changes)
    return [detection_rate(protocol, Step(index, protocol.iterations, 1000)) for index in at]


def test_the_rate_rises_from_a_thousandth_and_falls_at_the_milestones():
    # 0.02 (1/1000 + 999/1000 index / 1000)
    at = (0, 1, 500, 999, 1000, 59_999, 60_000, 79_999, 80_000, 89_999)
    expected = [2e-5, 3.998e-5, 0.01001, 0.01998002, 0.02, 0.02, 0.002, 0.002, 2e-4, 2e-4]
    assert rates("coco_fpn_1x", at) == pytest.approx(expected)


def test_the_cosine_is_multiplied_by_the_warmup():
    # 0.05 (1 + cos(pi index / 180,000)) / 2, before step 10,000 times 1e-4 + 0.9999 index / 10,000
    at = (0, 5_000, 10_000, 90_000, 135_000, 180_000)
    expected = [5e-6, 0.02500250 * 0.99809735, 0.05 * 0.99240388, 0.025, 0.05 * 0.14644661, 0]
    assert rates("coco_c4_triplet", at) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_milestones_move_with_the_iterations_and_a_warmup_is_at_most_a_tenth_of_them():
    chosen, changed = choose_protocol(DETECTION_PROTOCOLS, "voc0712_c4_24k", iterations=240, lr=0.01, batch_size=None)
    assert (chosen.milestone_steps, chosen.warmup_steps, changed) == ([180, 220], 24, ["iterations", "lr"])
    assert rates("voc0712_c4_24k", (0, 12, 24, 180, 220), iterations=240) == pytest.approx(
        [2e-5, 0.01001, 0.02, 0.002, 2e-4]
    )
    assert rates("voc0712_c4_24k", (0, 4), iterations=5) == pytest.approx([0.02, 0.002])
    assert rates("voc0712_c4_24k", (100, 36_000), iterations=48_000) == pytest.approx([0.02, 0.002])


def test_batch_norm_alone_has_no_weight_decay():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Linear(4, 2), nn.SyncBatchNorm(2)))
    optimizer = detection_optimizer(net, DETECTION_PROTOCOLS["coco_c4_1x"])
    names = {parameter: name for name, parameter in net.named_parameters()}
    decays = {names[each]: group["weight_decay"] for group in optimizer.param_groups for each in group["params"]}
    assert decays == {
        "0.weight": 1e-4,
        "0.bias": 1e-4,
        "1.weight": 0.0,
        "1.bias": 0.0,
        "2.0.weight": 1e-4,
        "2.0.bias": 1e-4,
        "2.1.weight": 0.0,
        "2.1.bias": 0.0,
    }
    assert {(group["lr"], group["momentum"], group["nesterov"]) for group in optimizer.param_groups} == {
        (0.02, 0.9, False)
    }


def test_an_unknown_protocol_is_refused_with_the_list():
    with pytest.raises(ValueError, match="no protocol 'coco_c5'; choose one of voc0712_c4_24k, coco_c4_1x, coco_c4_2x"):
        choose_protocol(DETECTION_PROTOCOLS, "coco_c5")


@pytest.mark.parametrize("change", [{"iterations": 0}, {"lr": -0.1}, {"lr": float("nan")}, {"batch_size": 0}])
def test_settings_that_are_not_positive_are_refused(change):
    (name,) = change
    with pytest.raises(ValueError, match=rf"{name} of a detection must be positive, not "):
        replace(DETECTION_PROTOCOLS["coco_c4_1x"], **change)


def test_text_follows_what_was_changed():
    protocol = replace(DETECTION_PROTOCOLS["coco_fpn_1x"], iterations=300, short_sides=(96,), lr=0.005)
    text = detection_text("coco_fpn_1x", protocol)
    assert "300 steps" in text
    assert "lr 0.005, from 5e-06 in 30 steps, x 0.1 after steps 200 and 267" in text
    assert "train: short side 96, " in text
