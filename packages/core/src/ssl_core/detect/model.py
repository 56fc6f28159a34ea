"""Faster and Mask R-CNN on an encoder, of torchvision's parts and with detectron2's numbers.

``c4``: proposals and regions come from the encoder's third stage, of stride 16, and its fourth, res5, works on each
region, with one more BatchNorm behind it (MoCo's). Boxes and masks share what it gives.
``fpn``: a feature pyramid of all four stages, with BatchNorm; two linear layers for boxes, four convolutions for masks.

Where torchvision's parts differ from detectron2's, these are detectron2's: RoIAlign is aligned and takes as many
samples as a region needs, box losses are L1, anchors are not rounded, masks are compared as bits and pasted without
rounding their boxes, and layers start as there. Images arrive resized, normalized and padded.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from timm.models.resnet import ResNet
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import FeaturePyramidNetwork, roi_align
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import LevelMapper

from ssl_core.evaluate.features import evaluating
from ssl_core.losses.precision import at_least_float32
from ssl_core.step import Step
from ssl_core.train import StepOutput
from ssl_core.views import ViewSpec

_STRIDES = (4, 8, 16, 32)  # of the four stages
_RATIOS = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class DetectorConfig:
    """The parts of a detector and the numbers of its proposals.

    Attributes:
        features: ``c4`` or ``fpn``, as above.
        masks: whether objects are segmented too, by Mask R-CNN.
        anchors: sides in pixels of the square anchors, beside which are others of the same area and of half and twice
            the height for their width; of ``fpn``, one for each of its five levels.
        channels: number of channels of the pyramid and of the convolutions for masks.
        train_proposals: number of proposals of an image in training, before non-maximum suppression of each level, and
            after it of all.
        test_proposals: the same in a test.
        regions: number of proposals of an image by which the heads are trained.
        score_threshold: score above which an object is found.
        detections: largest number of objects that are found in an image.
    """

    features: Literal["c4", "fpn"]
    masks: bool = False
    anchors: tuple[int, ...] = (32, 64, 128, 256, 512)
    channels: int = 256
    train_proposals: tuple[int, int] = (12_000, 2_000)
    test_proposals: tuple[int, int] = (6_000, 1_000)
    regions: int = 512
    score_threshold: float = 0.05
    detections: int = 100

    def __post_init__(self) -> None:
        levels = len(_STRIDES) + 1
        if self.features == "fpn" and len(self.anchors) != levels:
            raise ValueError(f"anchors {self.anchors} of a pyramid must be {levels}, one for each of its levels")


class Found(NamedTuple):
    """The objects that are found in an image, by falling score.

    Attributes:
        boxes: (k 4) left, upper, right and lower edge in pixels of the resized image.
        labels: (k) classes, counted from 0.
        scores: (k) scores in [0, 1].
        masks: (k s s) probability of the object in each cell of its box, for :func:`paste_masks`; None without masks.
    """

    boxes: Float[Tensor, "k 4"]
    labels: Int64[Tensor, " k"]
    scores: Float[Tensor, " k"]
    masks: Float[Tensor, "k s s"] | None = None


class Detector(nn.Module):
    """A detector as the training loop sees it; the encoder and all heads learn.

    The views of a micro-batch are pixels (n 3 h w), normalized and padded at the right and below; sizes (n 2), height
    and width of each image without its padding; boxes (m 6) as image, class, and left, upper, right and lower edge; and
    for masks (m h w), of 0 and 1. An image may have no box. The sampling of proposals takes torch's global generator.
    Predictions and losses are float32 whatever autocast says.

    Args:
        encoder: timm ResNet with its own stem.
        config: parts and numbers.
        num_classes: number of classes of objects.

    Raises:
        ValueError: if the encoder is none that a detector can be built on.
    """

    def __init__(self, encoder: nn.Module, config: DetectorConfig, num_classes: int) -> None:
        super().__init__()
        widths = stage_channels(encoder)
        self.views: tuple[ViewSpec, ...] = ()
        self.encoder = encoder
        self.config = config
        self.pyramid: nn.Module | None = None
        channels, strides, anchors = widths[2], list(_STRIDES[2:3]), [config.anchors]
        if config.features == "fpn":
            channels, strides, anchors = config.channels, [*_STRIDES, 64], [(side,) for side in config.anchors]
            self.pyramid = FeaturePyramidNetwork(widths, channels, LastLevelMaxPool(), nn.BatchNorm2d)
        self.rpn = _RPN(
            _Anchors(anchors, strides),
            _RPNHead(channels, len(anchors[0]) * len(_RATIOS)),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": config.train_proposals[0], "testing": config.test_proposals[0]},
            post_nms_top_n={"training": config.train_proposals[1], "testing": config.test_proposals[1]},
            nms_thresh=0.7,
        )
        self.roi_heads = _Heads(  # type: ignore[no-untyped-call]  # torchvision's
            **(_res5_parts if config.features == "c4" else _pyramid_parts)(encoder, widths, config, num_classes + 1),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=config.regions,
            positive_fraction=0.25,
            bbox_reg_weights=(10.0, 10.0, 5.0, 5.0),
            score_thresh=config.score_threshold,
            nms_thresh=0.5,
            detections_per_img=config.detections,
        )

    @property
    def projector(self) -> nn.Module:
        """The heads of boxes and masks."""
        return self.roi_heads

    def forward(self, views: tuple[Tensor, ...], step: Step) -> StepOutput:
        """The sum of the losses of one micro-batch, each of them among the metrics."""
        pixels, sizes, boxes, *masks = views
        if self.config.masks != bool(masks):
            raise ValueError(f"a detector {'with' if self.config.masks else 'without'} masks got {len(views)} views")
        targets = []
        for image in range(len(pixels)):
            own = (boxes[:, 0] == image).nonzero().flatten()
            targets.append({"boxes": boxes[own, 2:], "labels": boxes[own, 1].long() + 1})  # 0 is the background
            if masks:
                targets[-1]["masks"] = masks[0][own]
        losses = self._passed(pixels, sizes, targets)[1]
        return StepOutput(
            torch.stack(list(losses.values())).sum(), None, {name: loss.detach() for name, loss in losses.items()}
        )

    def predict(self, pixels: Float[Tensor, "n 3 h w"], sizes: Int64[Tensor, "n 2"]) -> list[Found]:
        """The objects in images, which are as in training."""
        with evaluating(self):
            return self._passed(pixels, sizes)[0]

    def update(self, keys: Tensor | None, step: Step) -> None:
        """Change nothing: the optimizer moves everything that learns."""

    def _passed(
        self, pixels: Tensor, sizes: Tensor, targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[list[Found], dict[str, Tensor]]:
        images = ImageList(pixels, [(height, width) for height, width in sizes.tolist()])
        if self.pyramid is None:
            features = {"0": _stages(self.encoder, pixels, 3)[-1]}
        else:
            bottom, right = (-side % _STRIDES[-1] for side in pixels.shape[-2:])
            padded = F.pad(pixels, (0, right, 0, bottom))
            features = self.pyramid({str(level): each for level, each in enumerate(_stages(self.encoder, padded, 4))})
        proposals, proposal_losses = self.rpn(images, features, targets)
        found, losses = self.roi_heads(features, proposals, images.image_sizes, targets)
        return found, proposal_losses | losses


def stage_channels(encoder: nn.Module) -> list[int]:
    """Number of channels of each of the four stages of an encoder that a detector can be built on.

    Raises:
        ValueError: if it is not a timm ResNet that takes images of three channels and whose stages have strides of 4,
            8, 16 and 32, which a stem for small images does not leave.

    Example:
        >>> from ssl_core.nn import EncoderConfig, make_encoder
        >>> stage_channels(make_encoder(EncoderConfig("resnet18"), channels=3, image_size=224))
        [64, 128, 256, 512]
    """
    if not isinstance(encoder, ResNet):
        raise ValueError(
            f"a detector is built on the four stages of a ResNet, which {type(encoder).__name__} does not have; "
            "give an encoder such as resnet50"
        )
    weight = next(encoder.parameters())
    if weight.shape[1] != 3:
        raise ValueError(f"a detector's images have 3 channels, and the encoder takes {weight.shape[1]}")
    side = 2 * _STRIDES[-1]
    with evaluating(encoder):
        stages = _stages(encoder, weight.new_zeros(1, 3, side, side), 4)
    strides = tuple(side // stage.shape[-1] for stage in stages)
    if strides != _STRIDES:
        raise ValueError(
            f"the stages of a detector's encoder have strides {_STRIDES}, and here they are {strides}: a stem for "
            "small images, such as CIFAR's, does not fit; pretrain with --encoder.stem imagenet"
        )
    return [stage.shape[1] for stage in stages]


def paste_masks(
    masks: Float[Tensor, "k s s"], boxes: Float[Tensor, "k 4"], size: tuple[int, int]
) -> Bool[Tensor, "k h w"]:
    """Whether each pixel of an image belongs to each object: where its mask, stretched over its box, is at least 0.5.

    Args:
        masks: probabilities in the cells of each box.
        boxes: left, upper, right and lower edge in pixels of that image, which need not be the resized one.
        size: height and width of the image.
    """
    side = masks.shape[-1]

    def weights(length: int, start: Tensor, stop: Tensor) -> Tensor:
        """(k length s) share of each cell in each pixel along one axis."""
        pixels, cells = (torch.arange(number, device=boxes.device) for number in (length, side))
        place = (pixels + 0.5 - start[:, None]) / (stop - start)[:, None] * side - 0.5
        return (1 - (place[:, :, None] - cells).abs()).clamp(min=0)

    left, upper, right, lower = boxes.unbind(1)
    rows, columns = weights(size[0], upper, lower), weights(size[1], left, right)
    pasted = [row @ mask @ column.T >= 0.5 for row, mask, column in zip(rows, masks, columns, strict=True)]
    return torch.stack(pasted) if pasted else torch.zeros(0, *size, dtype=torch.bool, device=boxes.device)


def precise_batch_norm_(detector: Detector, batches: Iterable[tuple[Tensor, ...]]) -> None:
    """Make running statistics of BatchNorm the mean over some batches of their means and variances.

    Paper: Wu and Johnson, 2021, 2105.07576; detectron2 takes 200 batches of the training set before it tests.

    Args:
        detector: detector, on its device, of which nothing else changes.
        batches: views of each batch, as in training.
    """
    layers = [module for module in detector.modules() if isinstance(module, _BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    was_training = detector.training
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # torch's sign for the mean of all
    detector.train()
    with torch.no_grad():
        for views in batches:
            detector(views, Step(0, 1, 1))
    detector.train(was_training)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


def _res5_parts(
    encoder: nn.Module, widths: Sequence[int], config: DetectorConfig, num_outputs: int
) -> dict[str, nn.Module]:
    parts: dict[str, nn.Module] = {
        "box_roi_pool": _RoIAlign(14, _STRIDES[2:3]),
        "box_head": _Res5(cast(Any, encoder).layer4, widths[3]),
        "box_predictor": nn.Sequential(nn.AdaptiveAvgPool2d(1), _box_predictor(widths[3], num_outputs)),
    }
    return parts | ({"mask_predictor": _mask_predictor(widths[3], config, num_outputs)} if config.masks else {})


def _pyramid_parts(
    encoder: nn.Module, widths: Sequence[int], config: DetectorConfig, num_outputs: int
) -> dict[str, nn.Module]:
    hidden = 4 * config.channels
    head = TwoMLPHead(config.channels * 7**2, hidden)  # type: ignore[no-untyped-call]  # torchvision's
    for linear in (head.fc6, head.fc7):
        nn.init.kaiming_uniform_(linear.weight, a=1)
        nn.init.zeros_(linear.bias)
    parts = {
        "box_roi_pool": _RoIAlign(7, _STRIDES),
        "box_head": head,
        "box_predictor": _box_predictor(hidden, num_outputs),
    }
    if config.masks:
        parts["mask_roi_pool"] = _RoIAlign(14, _STRIDES)
        parts["mask_head"] = MaskRCNNHeads(config.channels, (config.channels,) * 4, 1)
        parts["mask_predictor"] = _mask_predictor(config.channels, config, num_outputs)
    return parts


def _box_predictor(channels: int, num_outputs: int) -> nn.Module:
    predictor = FastRCNNPredictor(channels, num_outputs)  # type: ignore[no-untyped-call]  # torchvision's
    for linear, std in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
        nn.init.normal_(linear.weight, std=std)
        nn.init.zeros_(linear.bias)
    return cast(nn.Module, predictor)


def _mask_predictor(channels: int, config: DetectorConfig, num_outputs: int) -> nn.Module:
    predictor: Any = MaskRCNNPredictor(channels, config.channels, num_outputs)  # type: ignore[no-untyped-call]  # torchvision's
    nn.init.normal_(predictor.mask_fcn_logits.weight, std=0.001)
    for layer in (predictor.conv5_mask, predictor.mask_fcn_logits):
        nn.init.zeros_(layer.bias)
    return cast(nn.Module, predictor)


def _stages(encoder: nn.Module, pixels: Tensor, count: int) -> list[Tensor]:
    """What the first stages of a timm ResNet give."""
    net = cast(Any, encoder)
    stages = [net.maxpool(net.act1(net.bn1(net.conv1(pixels))))]
    for layer in (net.layer1, net.layer2, net.layer3, net.layer4)[:count]:
        stages.append(layer(stages[-1]))
    return stages[1:]


class _Anchors(AnchorGenerator):
    """Anchors of given strides, which torchvision derives from the sides of padded images, and not rounded."""

    def __init__(self, sides: Sequence[tuple[int, ...]], strides: Sequence[int]) -> None:
        super().__init__(tuple(sides), (_RATIOS,) * len(sides))  # type: ignore[no-untyped-call]  # torchvision's
        self.strides = strides

    def generate_anchors(
        self, scales: Any, aspect_ratios: Any, dtype: torch.dtype = torch.float32, device: Any = "cpu"
    ) -> Tensor:
        """(a 4) anchors around the origin."""
        sides = [(scale / math.sqrt(ratio), scale * math.sqrt(ratio)) for ratio in aspect_ratios for scale in scales]
        half = torch.tensor(sides, dtype=dtype, device=device) / 2
        return torch.cat([-half, half], dim=1)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """(a 4) anchors of each image, which are the same for all."""
        self.set_cell_anchors(torch.float32, feature_maps[0].device)
        sizes: Any = [feature.shape[-2:] for feature in feature_maps]
        strides: Any = [(stride, stride) for stride in self.strides]  # torchvision's tensors are for tracing
        anchors = torch.cat(self.grid_anchors(sizes, strides))
        return [anchors] * len(image_list.image_sizes)


class _RPNHead(RPNHead):
    """torchvision's, with float32 predictions."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, offsets = super().forward(x)
        return [at_least_float32(each) for each in logits], [at_least_float32(each) for each in offsets]


class _RPN(RegionProposalNetwork):
    """torchvision's, with detectron2's losses."""

    def compute_loss(
        self,
        objectness: Tensor,
        pred_bbox_deltas: Tensor,
        labels: list[Tensor],
        regression_targets: list[Tensor] | tuple[Tensor, ...],
    ) -> tuple[Tensor, Tensor]:
        positive, negative = (torch.cat(chosen).nonzero().flatten() for chosen in self.fg_bg_sampler(labels))
        sampled = torch.cat([positive, negative])
        number = self.fg_bg_sampler.batch_size_per_image * len(labels)
        is_object = F.binary_cross_entropy_with_logits(
            objectness.flatten()[sampled], torch.cat(labels)[sampled], reduction="sum"
        )
        offset = F.l1_loss(pred_bbox_deltas[positive], torch.cat(regression_targets)[positive], reduction="sum")
        return is_object / number, offset / number


class _RoIAlign(nn.Module):
    """(r c s s) contents of boxes in feature maps, of each box in the map for its size."""

    def __init__(self, side: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.side, self.strides = side, strides
        self.level_of = LevelMapper(int(math.log2(strides[0])), int(math.log2(strides[-1])))

    def forward(self, features: Mapping[str, Tensor], boxes: list[Tensor]) -> Tensor:
        images = [box.new_full((len(box), 1), image) for image, box in enumerate(boxes)]
        regions = torch.cat([torch.cat(images), torch.cat(boxes)], dim=1)
        levels = self.level_of(boxes)
        places = [(levels == level).nonzero().flatten() for level in range(len(self.strides))]
        parts = [
            roi_align(feature, regions[place], self.side, 1 / stride, sampling_ratio=0, aligned=True)
            for feature, place, stride in zip(features.values(), places, self.strides, strict=False)
        ]
        # One level is most of the memory of C4, and in order.
        return parts[0] if len(parts) == 1 else torch.cat(parts)[torch.cat(places).argsort()]


class _Res5(nn.Module):
    """The encoder's last stage for regions, and MoCo's extra BatchNorm."""

    def __init__(self, layer: nn.Module, channels: int) -> None:
        super().__init__()
        object.__setattr__(self, "layer", layer)  # no submodule: it is the encoder's
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, regions: Tensor) -> Tensor:
        return cast(Tensor, self.norm(cast(Any, self).layer(regions)))


class _Heads(RoIHeads):
    """torchvision's, with detectron2's losses; masks have no head of their own where they share res5."""

    def forward(  # type: ignore[override]  # torchvision's returns dictionaries
        self,
        features: Mapping[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[Found], dict[str, Tensor]]:
        if targets is None:
            return self._found(features, proposals, image_shapes), {}
        proposals, matched, labels, offsets = self.select_training_samples(proposals, targets)
        regions = self.box_head(self.box_roi_pool(features, proposals))
        logits, predicted = (at_least_float32(each) for each in self.box_predictor(regions))
        of_region = torch.cat(labels)
        positive = of_region.nonzero().flatten()
        own = predicted.view(-1, logits.shape[1], 4)[positive, of_region[positive]]
        losses = {
            "loss_classifier": F.cross_entropy(logits, of_region),
            "loss_box_reg": F.l1_loss(own, torch.cat(offsets)[positive], reduction="sum") / len(of_region),
        }
        if self.mask_predictor is not None:
            chosen = [label.nonzero().flatten() for label in labels]
            boxes = [box[place] for box, place in zip(proposals, chosen, strict=True)]
            shared = (
                regions[positive] if self.mask_head is None else self.mask_head(self.mask_roi_pool(features, boxes))
            )
            predicted = _of_class(self.mask_predictor(shared), of_region[positive])
            masks = [
                _cut_masks(target["masks"], box, match[place], predicted.shape[-1])
                for target, box, match, place in zip(targets, boxes, matched, chosen, strict=True)
            ]
            loss = F.binary_cross_entropy_with_logits(predicted, torch.cat(masks), reduction="sum")
            losses["loss_mask"] = loss / max(predicted.numel(), 1)
        return [], losses

    def _found(
        self, features: Mapping[str, Tensor], proposals: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> list[Found]:
        regions = self.box_head(self.box_roi_pool(features, proposals))
        logits, offsets = (at_least_float32(each) for each in self.box_predictor(regions))
        boxes, scores, labels = self.postprocess_detections(logits, offsets, proposals, image_shapes)
        masks: Sequence[Tensor | None] = [None] * len(boxes)
        if self.mask_predictor is not None:
            pool, head = self.mask_roi_pool, self.mask_head
            if head is None:
                pool, head = self.box_roi_pool, self.box_head
            own = _of_class(self.mask_predictor(head(pool(features, boxes))), torch.cat(labels))
            masks = torch.split(own.sigmoid(), [len(each) for each in boxes])
        return [
            Found(box, label - 1, score, mask)
            for box, label, score, mask in zip(boxes, labels, scores, masks, strict=True)
        ]


def _of_class(masks: Tensor, labels: Tensor) -> Tensor:
    """(r s s) float32 mask of each region's class, of masks of all classes."""
    return at_least_float32(masks[torch.arange(len(labels), device=labels.device), labels])


def _cut_masks(masks: Tensor, boxes: Tensor, matched: Tensor, side: int) -> Tensor:
    """(r side side) of 0 and 1: what of its object's mask lies in each box."""
    regions = torch.cat([matched[:, None].to(boxes), boxes], dim=1)
    return (roi_align(masks[:, None].to(boxes), regions, side, sampling_ratio=0, aligned=True)[:, 0] >= 0.5).to(boxes)
