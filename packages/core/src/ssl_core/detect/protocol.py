"""Named protocols of detection and segmentation on encoders.

In all of them every layer learns, by SGD with momentum 0.9 and without weight decay of BatchNorm, which takes its
statistics over all processes, and images are flipped.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_core.detect.model import DetectorConfig
from ssl_core.schedules import cosine_schedule, linear_schedule
from ssl_core.step import Step
from ssl_core.train.learning_rate import step_decay

# Where training on torchvision's parts and our batches still differs from detectron2's.
DIFFERENCES = ("images are not grouped by aspect ratio",)
MASK_DIFFERENCES = ("targets of masks are cut from rasterized masks, not rasterized in each box",)


@dataclass(frozen=True)
class DetectionProtocol:
    """The settings of a detector, of its training and of its test.

    Attributes:
        source: paper or code that the numbers are from, and which of them are ours.
        images: set of images: ``voc0712`` (VOC 2007 and 2012 trainval, tested on VOC 2007 test), ``coco`` (train2017,
            val2017) or ``lvis`` (LVIS v0.5 train, val).
        detector: parts of the detector.
        iterations: number of optimizer steps.
        milestones: fractions of the steps at which the learning rate is divided by 10; empty is a cosine to 0.
        warmup: number of steps in which the learning rate rises linearly, of few iterations at most a tenth.
        warmup_start: learning rate at the first step, as a fraction of ``lr``.
        lr: learning rate after the warm-up, for the batch size that is given; it is not scaled.
        batch_size: number of images of one optimizer step.
        weight_decay: factor of each parameter that is added to its gradient, but for those of BatchNorm.
        short_sides: lengths in pixels of the short side of a training image, of which each image takes one at random.
        long_side: largest length of the long side of a training image.
        test_sides: length of the short side, and largest length of the long side, of a test image.
        precise_batch_norm: number of training batches of which BatchNorm takes its statistics before the test, at most
            as many as there were iterations.
        repeat_threshold: share of images below which a class has its images repeated; None repeats none.
    """

    source: str
    images: Literal["voc0712", "coco", "lvis"]
    detector: DetectorConfig
    iterations: int
    milestones: tuple[float, ...]
    warmup: int = 1000
    warmup_start: float = 1e-3
    lr: float = 0.02
    batch_size: int = 16
    weight_decay: float = 1e-4
    short_sides: tuple[int, ...] = tuple(range(640, 801, 32))
    long_side: int = 1333
    test_sides: tuple[int, int] = (800, 1333)
    precise_batch_norm: int = 200
    repeat_threshold: float | None = None

    def __post_init__(self) -> None:
        for name in ("iterations", "lr", "batch_size"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} of a detection must be positive, not {getattr(self, name)}")

    @property
    def warmup_steps(self) -> int:
        """Number of steps of the warm-up."""
        return min(self.warmup, self.iterations // 10)

    @property
    def precise_batches(self) -> int:
        """Number of batches of BatchNorm's statistics in the test."""
        return min(self.precise_batch_norm, self.iterations)

    @property
    def milestone_steps(self) -> list[int]:
        """First steps of each smaller learning rate."""
        return [round(milestone * self.iterations) for milestone in self.milestones]


_C4 = DetectorConfig("c4", masks=True)
_FPN = DetectorConfig("fpn", masks=True, train_proposals=(2_000, 1_000), test_proposals=(1_000, 1_000))
_COCO_1X = DetectionProtocol(
    "MoCo (He et al., 2020)",
    images="coco",
    detector=_C4,
    iterations=90_000,
    milestones=(60 / 90, 80 / 90),
)
_COCO_2X = replace(_COCO_1X, source=f"{_COCO_1X.source}, released code; CLSA", iterations=180_000)
_FPN_1X = replace(_COCO_1X, source=f"{_COCO_1X.source}, issues 34 and 39 of its code; CLIM, DSSL", detector=_FPN)
_LVIS = replace(
    _FPN_1X,
    source="detectron2's Mask R-CNN on LVIS v0.5, with MoCo's BatchNorm; CLIM, whose 2x may be 90k or 180k",
    images="lvis",
    detector=replace(_FPN, score_threshold=1e-4, detections=300),
    repeat_threshold=1e-3,
)

DETECTION_PROTOCOLS: dict[str, DetectionProtocol] = {
    "voc0712_c4_24k": DetectionProtocol(
        "MoCo (He et al., 2020), released code; CLSA, CLIM, LeOCLR",
        images="voc0712",
        detector=replace(_C4, masks=False),
        iterations=24_000,
        milestones=(18 / 24, 22 / 24),
        warmup=100,
        short_sides=tuple(range(480, 801, 32)),
    ),
    "coco_c4_1x": _COCO_1X,
    "coco_c4_2x": _COCO_2X,
    "coco_c4_triplet": replace(
        _COCO_2X,
        source="Truncated triplet (Wang et al., 2021), released code; SCE. Not comparable with coco_c4_1x or 2x",
        milestones=(),
        warmup=10_000,
        warmup_start=1e-4,
        lr=0.05,
        short_sides=(*_COCO_2X.short_sides, 832, 864, 880),
        long_side=1200,
    ),
    "coco_fpn_1x": _FPN_1X,
    "coco_fpn_2x": replace(_FPN_1X, iterations=180_000),
    "lvis_fpn_90k": _LVIS,
    "lvis_fpn_180k": replace(_LVIS, iterations=180_000),
}

_SETS = {
    "voc0712": "VOC 2007 and 2012 trainval, tested on VOC 2007 test",
    "coco": "COCO train2017, tested on val2017",
    "lvis": "LVIS v0.5 train, tested on val",
}


def detection_rate(protocol: DetectionProtocol, step: Step) -> float:
    """Learning rate at a step, as detectron2 has it: the warm-up multiplies the schedule.

    Example:
        >>> protocol = DETECTION_PROTOCOLS["voc0712_c4_24k"]
        >>> rates = [detection_rate(protocol, Step(index, 24_000, 1_000)) for index in (0, 50, 100, 18_000, 22_000)]
        >>> [f"{rate:.6g}" for rate in rates]
        ['2e-05', '0.01001', '0.02', '0.002', '0.0002']
    """
    rate = protocol.lr
    if protocol.milestones:
        rate *= step_decay(step.index, protocol.milestone_steps)
    else:
        rate *= cosine_schedule(1.0, 0.0, step.index / protocol.iterations)
    if step.index < protocol.warmup_steps:
        rate *= linear_schedule(protocol.warmup_start, 1.0, step.index / protocol.warmup_steps)
    return rate


def detection_optimizer(detector: nn.Module, protocol: DetectionProtocol) -> torch.optim.Optimizer:
    """SGD over all parameters of a detector, with weight decay of all but BatchNorm's."""
    norms = [module for module in detector.modules() if isinstance(module, _BatchNorm)]
    without = {parameter for norm in norms for parameter in norm.parameters()}
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in detector.parameters() if parameter not in without]},
        {"params": [parameter for parameter in detector.parameters() if parameter in without], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, protocol.lr, momentum=0.9, weight_decay=protocol.weight_decay)


def detection_text(name: str, protocol: DetectionProtocol, images: str | None = None) -> str:
    """A protocol in words, with its own images or others.

    Example:
        >>> print(detection_text("voc0712_c4_24k", DETECTION_PROTOCOLS["voc0712_c4_24k"]))
        protocol voc0712_c4_24k: MoCo (He et al., 2020), released code; CLSA, CLIM, LeOCLR
          images: VOC 2007 and 2012 trainval, tested on VOC 2007 test
          Faster R-CNN, C4: res5 on regions, one more BatchNorm behind it
          24,000 steps, batch 16, sgd with momentum 0.9, weight decay 0.0001, of BatchNorm 0
          lr 0.02, from 2e-05 in 100 steps, x 0.1 after steps 18,000 and 22,000
          BatchNorm: over all processes; of 200 batches before the test
          train: short side 480 to 800 by 32, long side at most 1333, flip
          test: short side 800, long side at most 1333; 100 detections of an image, score above 0.05
          torchvision's parts, not detectron2: images are not grouped by aspect ratio
    """
    detector = protocol.detector
    kind = {
        "c4": "C4: res5 on regions, one more BatchNorm behind it",
        "fpn": "FPN with BatchNorm, heads without",
    }[detector.features]
    decay = f"weight decay {protocol.weight_decay:g}, of BatchNorm 0"
    rate = f"lr {protocol.lr:g}, "
    if protocol.warmup_steps:
        rate += f"from {protocol.lr * protocol.warmup_start:g} in {protocol.warmup_steps:,} steps, "
    if protocol.milestones:
        rate += f"x 0.1 after steps {' and '.join(f'{step:,}' for step in protocol.milestone_steps)}"
    else:
        rate += "cosine to 0 at every step"
    repeated = ""
    if protocol.repeat_threshold is not None:
        repeated = f", images repeated for classes in less than {protocol.repeat_threshold:g} of them"
    differences = DIFFERENCES + MASK_DIFFERENCES * detector.masks
    test_short, test_long = protocol.test_sides
    lines = [
        f"protocol {name}: {protocol.source}",
        f"images: {images or _SETS[protocol.images]}{repeated}",
        f"{'Mask' if detector.masks else 'Faster'} R-CNN, {kind}",
        f"{protocol.iterations:,} steps, batch {protocol.batch_size}, sgd with momentum 0.9, {decay}",
        rate,
        f"BatchNorm: over all processes; of {protocol.precise_batches} batches before the test",
        f"train: short side {_sides_text(protocol.short_sides)}, long side at most {protocol.long_side}, flip",
        f"test: short side {test_short}, long side at most {test_long}; {detector.detections} detections of an image, "
        f"score above {detector.score_threshold:g}",
        f"torchvision's parts, not detectron2: {'; '.join(differences)}",
    ]
    return "\n  ".join(lines)


def _sides_text(sides: tuple[int, ...]) -> str:
    """Lengths in words.

    Example:
        >>> _sides_text((480, 512, 544)), _sides_text((96,)), _sides_text((640, 672, 704, 720))
        ('480 to 544 by 32', '96', '640 to 704 by 32 or 720')
    """
    *even, last = sides
    step = sides[1] - sides[0] if len(sides) > 1 else 0
    if sides == tuple(range(sides[0], last + 1, step or 1)):
        return f"{sides[0]} to {last} by {step}" if even else str(last)
    return f"{_sides_text(tuple(even))} or {last}"
