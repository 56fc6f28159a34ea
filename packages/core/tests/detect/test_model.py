import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from ssl_core.detect.model import (
    Detector,
    DetectorConfig,
    Found,
    _Anchors,
    _cut_masks,
    _RoIAlign,
    paste_masks,
    precise_batch_norm_,
    stage_channels,
)
from ssl_core.detect.protocol import DETECTION_PROTOCOLS, detection_optimizer, detection_rate
from ssl_core.nn import EncoderConfig, make_encoder, sync_batch_norm
from ssl_core.train import Method, Step, TrainConfig, load_checkpoint, train
from ssl_core.train.checkpoint import restore_

STEP = Step(0, 10, 5)
TINY = {"layers": [1, 1, 1, 1], "channels": [8, 16, 32, 64]}
ANCHORS = {"c4": (16, 32, 64), "fpn": (8, 16, 32, 64, 128)}
KINDS = [(features, masks) for features in ANCHORS for masks in (False, True)]
KIND_NAMES = ["faster-c4", "mask-c4", "faster-fpn", "mask-fpn"]


def tiny_detector(features, masks=False, *, num_classes=3, seed=0, **numbers):
    torch.manual_seed(seed)
    encoder = make_encoder(EncoderConfig("resnet18", "imagenet", options=TINY), channels=3, image_size=64)
    few = {"channels": 16, "train_proposals": (200, 50), "test_proposals": (200, 50), "regions": 32} | numbers
    return Detector(encoder, DetectorConfig(features, masks, ANCHORS[features], **few), num_classes)


def made_batch(masks, *, boxes=((0, 0, 8, 8, 40, 30), (0, 2, 30, 20, 60, 60), (2, 1, 10, 4, 50, 44)), seed=1):
    """Three images of 64 px, of which one is padded below and one at the right; the second has no object."""
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    sizes = torch.tensor([[64, 64], [48, 64], [64, 51]])
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 6)
    views = [pixels, sizes, boxes]
    if masks:
        inside = torch.zeros(len(boxes), 64, 64, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(inside, boxes[:, 2:].int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
        views.append(inside)
    return tuple(views)


@pytest.mark.parametrize(("features", "masks"), KINDS, ids=KIND_NAMES)
def test_every_parameter_learns_though_an_image_is_empty(features, masks):
    detector = tiny_detector(features, masks)
    assert isinstance(detector, Method)
    output = detector(made_batch(masks), STEP)
    output.loss.backward()
    without = [name for name, each in detector.named_parameters() if each.grad is None or not each.grad.any()]
    assert without == []
    names = ["loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", *["loss_mask"] * masks]
    assert sorted(output.metrics) == sorted(names)
    assert output.loss.item() == pytest.approx(sum(loss.item() for loss in output.metrics.values()))
    assert output.metrics["loss_classifier"].item() == pytest.approx(math.log(4), rel=0.1)  # 3 classes and background
    if masks:
        assert output.metrics["loss_mask"].item() == pytest.approx(math.log(2), rel=0.1)


@pytest.mark.parametrize(("features", "masks"), KINDS, ids=KIND_NAMES)
def test_a_batch_without_objects_has_a_gradient_for_every_parameter(features, masks):
    detector = tiny_detector(features, masks)
    loss = detector(made_batch(masks, boxes=()), STEP).loss
    loss.backward()
    assert loss.isfinite()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in detector.parameters())


@pytest.mark.parametrize("features", ANCHORS)
def test_the_encoder_is_there_once_under_its_own_names(features):
    detector = tiny_detector(features, masks=True)
    state = detector.state_dict()
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)
    assert {name.removeprefix("encoder.") for name in state if name.startswith("encoder.")} == set(
        detector.encoder.state_dict()
    )


@pytest.mark.parametrize(("features", "masks"), KINDS, ids=KIND_NAMES)
def test_predictions_lie_in_their_images_and_change_nothing(features, masks):
    detector = tiny_detector(features, masks, score_threshold=0.2, detections=7)
    pixels, sizes, *_ = made_batch(masks)
    before = copy.deepcopy(detector.state_dict())
    found = detector.predict(pixels, sizes)
    assert detector.training
    assert all(torch.equal(before[name], tensor) for name, tensor in detector.state_dict().items())
    assert [type(each) for each in found] == [Found] * 3
    for each, (height, width) in zip(found, sizes.tolist(), strict=True):
        assert 0 < len(each.boxes) <= 7
        assert (each.boxes[:, :2] >= 0).all()
        assert (each.boxes[:, 2:] <= torch.tensor([width, height])).all()
        assert (each.boxes[:, :2] < each.boxes[:, 2:]).all()
        assert ((each.labels >= 0) & (each.labels < 3)).all()
        assert (each.scores > 0.2).all()
        assert (each.scores.diff() <= 0).all()
        assert (each.masks is not None) == masks
        if masks:
            assert each.masks.shape == (len(each.boxes), *{"c4": (14, 14), "fpn": (28, 28)}[features])


@pytest.mark.parametrize("features", ANCHORS)
def test_where_nothing_is_found_there_are_no_boxes_and_no_masks(features):
    detector = tiny_detector(features, masks=True, score_threshold=1.0)
    pixels, sizes, *_ = made_batch(False)
    for boxes, labels, scores, masks in detector.predict(pixels, sizes):
        assert (boxes.shape, labels.shape, scores.shape, len(masks)) == ((0, 4), (0,), (0,), 0)
        assert paste_masks(masks, boxes, (64, 64)).shape == (0, 64, 64)


@pytest.mark.parametrize("features", ANCHORS)
def test_losses_and_predictions_are_float32_under_bfloat16(features):
    detector = tiny_detector(features, masks=True, score_threshold=0.2)
    batch = made_batch(True)
    proposals = []
    detector.rpn.register_forward_hook(lambda *passed: proposals.extend(passed[2][0]))
    with torch.autocast("cpu", torch.bfloat16):
        output = detector(batch, STEP)
        found = detector.predict(*batch[:2])[0]
    output.loss.backward()
    assert {loss.dtype for loss in (output.loss, *output.metrics.values())} == {torch.float32}
    assert {each.dtype for each in (found.boxes, found.scores, found.masks)} == {torch.float32}
    # Boxes that were rounded to bfloat16's eight bits would all be such numbers.
    assert [torch.equal(boxes, boxes.bfloat16().float()) for boxes in (*proposals, found.boxes)] == [False] * 7


def test_views_that_do_not_fit_the_heads_are_refused():
    for masks in (True, False):
        with pytest.raises(ValueError, match=f"with{'out' * (not masks)} masks got {4 - masks} views"):
            tiny_detector("c4", masks)(made_batch(not masks), STEP)


def test_channels_are_those_of_the_stages():
    assert stage_channels(tiny_detector("c4").encoder) == [8, 16, 32, 64]


@pytest.mark.parametrize(
    ("config", "channels", "size", "says"),
    [
        (EncoderConfig("vit_tiny_patch16_224", options={"depth": 1}), 3, 32, "which VisionTransformer does not have"),
        (EncoderConfig("resnet18", "small", options=TINY), 3, 32, r"here they are \(1, 2, 4, 8\): a stem for"),
        (EncoderConfig("resnet18", "small_pool", options=TINY), 3, 64, r"\(2, 4, 8, 16\).*--encoder.stem imagenet"),
        (EncoderConfig("resnet18", "imagenet", options={**TINY, "output_stride": 16}), 3, 64, r"\(4, 8, 16, 16\)"),
        (EncoderConfig("resnet18", "imagenet", options=TINY), 1, 64, "3 channels, and the encoder takes 1"),
    ],
    ids=["vit", "small stem", "small stem with pool", "dilated", "gray"],
)
def test_an_encoder_that_does_not_fit_is_refused(config, channels, size, says):
    encoder = make_encoder(config, channels=channels, image_size=size)
    with pytest.raises(ValueError, match=says):
        Detector(encoder, DetectorConfig("c4"), 3)


def test_a_pyramid_has_anchors_for_each_of_its_levels():
    with pytest.raises(ValueError, match=r"anchors \(16, 32\) of a pyramid must be 5"):
        DetectorConfig("fpn", anchors=(16, 32))


def test_batch_norm_of_all_parts_can_be_synchronized():
    detector = sync_batch_norm(tiny_detector("c4"), torch.device("cuda"))
    norms = [module for module in detector.modules() if isinstance(module, _BatchNorm)]
    assert {type(norm) for norm in norms} == {nn.SyncBatchNorm}
    assert detector.roi_heads.box_head.layer is detector.encoder.layer4


def test_anchors_have_exact_sides_at_exact_strides():
    anchors = _Anchors(((32,),), (16,))
    images = ImageList(torch.zeros(1, 3, 1, 1), [(800, 1333)])
    # 84 cells of 16 px in 1,333 px; torchvision's stride would be 1333 // 84 = 15.
    (found,) = anchors(images, [torch.zeros(1, 1, 50, 84, dtype=torch.bfloat16)])
    width, height = 32 / math.sqrt(0.5), 32 * math.sqrt(0.5)
    assert found[0].tolist() == pytest.approx([-width / 2, -height / 2, width / 2, height / 2])
    assert found[-1].tolist() == pytest.approx(
        [83 * 16 - height / 2, 49 * 16 - width / 2, 83 * 16 + height / 2, 49 * 16 + width / 2]
    )


def test_proposals_learn_by_the_sums_over_256_anchors_of_each_image():
    rpn = tiny_detector("c4").rpn
    labels, offsets = [torch.tensor([1.0, 0.0, -1.0])], [torch.tensor([[1.0, 2.0, 0.0, 0.0]] * 3)]
    is_object, offset = rpn.compute_loss(torch.zeros(3, 1), torch.zeros(3, 4), labels, offsets)
    # Two anchors at probability 1/2, and |1| + |2| of the one with an object; the ignored one counts nowhere.
    assert (is_object.item(), offset.item()) == pytest.approx((2 * math.log(2) / 256, 3 / 256))


def test_regions_are_aligned_and_of_the_level_for_their_size():
    strides = (4, 8, 16, 32)
    # The value of each cell is its center in pixels, and that of a region the center of its box.
    features = {
        str(level): ((torch.arange(512 // stride) + 0.5) * stride).expand(1, 1, 512 // stride, -1) + 1000 * level
        for level, stride in enumerate(strides)
    }
    boxes = torch.tensor([[300, 20, 420, 130], [10, 10, 460, 460], [40, 60, 60, 80], [120, 100, 350, 330]]).float()
    pooled = _RoIAlign(7, strides)(features, [boxes]).mean(dim=(1, 2, 3))
    # Level 2 + log2(side / 224), rounded down: 120, 450, 20 and 230 px.
    assert pooled.tolist() == pytest.approx([1000 + 360, 3000 + 235, 50, 2000 + 235], rel=1e-5)
    single = _RoIAlign(7, strides[2:3])({"0": features["2"].expand(2, 1, -1, -1)}, [boxes[:2], boxes[2:]]).mean(
        dim=(1, 2, 3)
    )
    assert single.tolist() == pytest.approx([2360, 2235, 2050, 2235], rel=1e-5)


def test_targets_of_masks_are_bits_of_the_object_in_each_box():
    masks = torch.zeros(2, 32, 32, dtype=torch.uint8)
    masks[0, :15], masks[1, :, 8:] = 1, 1  # three quarters of the second row of cells
    boxes = torch.tensor([[4.0, 8.0, 20.0, 24.0], [4.0, 8.0, 12.0, 16.0]])
    upper, right = _cut_masks(masks, boxes, torch.tensor([0, 1]), 4)
    assert upper.tolist() == [[1] * 4, [1] * 4, [0] * 4, [0] * 4]
    assert right.tolist() == [[0, 0, 1, 1]] * 4


def test_pasted_masks_are_stretched_over_their_boxes():
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(3, 14, 14, generator=generator)
    boxes = torch.tensor([[3.2, 5.7, 30.1, 22.4], [0.0, 0.0, 40.0, 30.0], [35.5, 20.5, 39.9, 29.0]])
    left, upper, right, lower = boxes[:, :, None].unbind(1)
    rows = 2 * (torch.arange(30) + 0.5 - upper) / (lower - upper) - 1
    columns = 2 * (torch.arange(40) + 0.5 - left) / (right - left) - 1
    grid = torch.stack([columns[:, None].expand(-1, 30, -1), rows[:, :, None].expand(-1, -1, 40)], dim=-1)
    expected = F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]
    pasted = paste_masks(masks, boxes, (30, 40))
    assert torch.equal(pasted, expected >= 0.5)
    whole = paste_masks(torch.ones(1, 28, 28), torch.tensor([[10.0, 5.0, 30.0, 25.0]]), (30, 40))[0]
    assert whole[5:25, 10:30].all()
    assert whole.sum() == 400


@pytest.mark.parametrize("features", ANCHORS)
def test_precise_statistics_are_means_over_batches_and_nothing_else_changes(features):
    detector = tiny_detector(features)
    detector(made_batch(False, seed=7), STEP)
    detector.eval()
    norms = {"stem": detector.encoder.bn1, "last": detector.encoder.layer4[0].bn2}
    norms["head"] = detector.roi_heads.box_head.norm if features == "c4" else detector.pyramid.layer_blocks[3][1]
    seen = {name: [] for name in norms}
    for name, norm in norms.items():
        norm.register_forward_pre_hook(lambda _, inputs, name=name: seen[name].append(inputs[0].detach()))
    parameters = copy.deepcopy(dict(detector.named_parameters()))
    precise_batch_norm_(detector, [made_batch(False, seed=seed) for seed in range(3)])
    for name, norm in norms.items():
        means = torch.stack([each.mean(dim=(0, 2, 3)) for each in seen[name]])
        variances = torch.stack([each.var(dim=(0, 2, 3)) for each in seen[name]])
        assert len(means) == 3
        torch.testing.assert_close(norm.running_mean, means.mean(0), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(norm.running_var, variances.mean(0), rtol=1e-4, atol=1e-6)
        assert norm.momentum == 0.1
    assert not detector.training
    assert all(torch.equal(parameters[name], each) for name, each in detector.named_parameters())


class Repeated:
    """Batches of the same views in every step."""

    batches_per_epoch = 3

    def __init__(self, *views):
        self.views = views
        self.index = torch.arange(len(views[0]))

    def epoch(self, epoch, start=0):
        return iter([self] * (self.batches_per_epoch - start))

    def identifier(self, index):
        return str(index)

    def state_dict(self):
        return {}


@pytest.mark.parametrize("features", ANCHORS)
def test_a_training_that_is_killed_and_resumed_equals_one_that_never_was(features, tmp_path):
    protocol = replace(DETECTION_PROTOCOLS["coco_c4_1x"], iterations=6)
    config = TrainConfig(epochs=2, batch_size=3)

    def run(folder, after_epoch=lambda _: {}):
        detector = tiny_detector(features, masks=True)
        optimizer = detection_optimizer(detector, protocol)
        torch.manual_seed(5)
        start = 0
        if folder.exists():
            start = restore_(load_checkpoint(folder / "checkpoints/last.pt"), method=detector, optimizer=optimizer)
        train(
            detector,
            Repeated(*made_batch(True)),
            optimizer,
            config,
            folder=folder,
            learning_rate=lambda step: detection_rate(protocol, step),
            start=start,
            on_epoch=after_epoch,
            quiet=True,
        )
        return detector.state_dict()

    def killed(_):
        raise KeyboardInterrupt

    expected = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", killed)
    resumed = run(tmp_path / "killed")
    assert [name for name, tensor in resumed.items() if not torch.equal(tensor, expected[name])] == []


def rectangles():
    """Four images of 96 px with two rectangles each, one in either of two colors."""
    pixels = torch.randn(4, 3, 96, 96, generator=torch.Generator().manual_seed(0)) * 0.1
    places = [(6, 8, 40, 36), (50, 48, 90, 88), (10, 52, 44, 84), (52, 6, 88, 40)]
    boxes = []
    for image in range(4):
        for label in range(2):
            x1, y1, x2, y2 = places[(image + label) % 4]
            pixels[image, label, y1:y2, x1:x2] += 2
            boxes.append((image, label, x1, y1, x2, y2))
    boxes = torch.tensor(boxes, dtype=torch.float32)
    return pixels, torch.tensor([[96, 96]] * 4), boxes


@pytest.mark.slow
@pytest.mark.parametrize("features", ANCHORS)
def test_four_images_can_be_learned_by_heart(features, tmp_path):
    pixels, sizes, boxes = rectangles()
    # Of many regions nearly all are background at first, which silences heads as narrow as these.
    detector = tiny_detector(features, num_classes=2, channels=32, regions={"c4": 16, "fpn": 8}[features])
    # A pyramid is slower to fit its boxes: after 120 steps half of them overlap theirs by less than 0.6.
    iterations = {"c4": 120, "fpn": 180}[features]
    protocol = replace(DETECTION_PROTOCOLS["voc0712_c4_24k"], iterations=iterations, milestones=(0.8,))
    batches = Repeated(pixels, sizes, boxes)
    train(
        detector,
        batches,
        detection_optimizer(detector, protocol),
        TrainConfig(steps=protocol.iterations, batch_size=4, log_every=20),
        folder=tmp_path,
        learning_rate=lambda step: detection_rate(protocol, step),
        quiet=True,
    )
    precise_batch_norm_(detector, [batches.views] * 2)
    hits = 0
    for image, found in enumerate(detector.predict(pixels, sizes)):
        truth = boxes[boxes[:, 0] == image]
        overlap, best = box_iou(found.boxes[:2], truth[:, 2:]).max(dim=1)
        is_right = (overlap >= 0.5) & (found.labels[:2] == truth[best, 1])
        hits += len(set(best[is_right].tolist()))
    assert hits >= 0.9 * len(boxes)
