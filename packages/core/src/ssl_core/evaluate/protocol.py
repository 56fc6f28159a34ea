"""Named protocols of the linear probe, each with its own crops: without them its number means nothing.

In all of them a fully connected layer learns from a frozen trunk (eval mode, no gradient) with cross-entropy,
momentum 0.9 and no weight decay. Its weights start from N(0, 0.01), its bias from 0; the images that do not fill a last
batch are left out of that epoch, test images never. Crops are given relative to the side of the encoder's input, so
that what was written for 224 pixels also says what it means for 32.
"""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ssl_core.evaluate.features import evaluation_view
from ssl_core.views import CenterCrop, HorizontalFlip, RandomCrop, RandomResizedCrop, Resize, ViewSpec, eval_spec

TestCrop: TypeAlias = Literal["center", "random", "random_window"]


@dataclass(frozen=True)
class Protocol:
    """The settings of a linear probe and its test.

    Attributes:
        source: paper or code that the numbers are from.
        epochs: number of passes over the training set.
        batch_size: number of images of one optimizer step.
        lr: learning rate at the start.
        scale_lr: whether ``lr`` is multiplied by batch_size / 256.
        optimizer: name of the optimizer; ``lars`` adapts the rate of each tensor, with trust coefficient 0.001 and no
            clipping.
        milestones: fractions of the epochs at which the rate is divided by 10; empty means a cosine.
        final_lr: learning rate at the end of the cosine.
        per_step: whether the rate moves at every step, not once an epoch.
        crop: crop of training images: ``random_resized``; ``padded``, by an eighth of the side on each side, then
            cut at a random place; both then flip with probability 0.5. ``none`` takes training and test images
            in :func:`evaluation_view`, as kNN does, and extracts features once.
        crop_scale: smallest and largest area of a ``random_resized`` crop, as fractions of the image.
        resize: short side of a test image before its center crop, as a multiple of the crop's side.
        interpolation: interpolation of training and test images.
    """

    source: str
    epochs: int
    batch_size: int
    lr: float
    scale_lr: bool = False
    optimizer: Literal["sgd", "lars"] = "sgd"
    milestones: tuple[float, ...] = ()
    final_lr: float = 0.0
    per_step: bool = False
    crop: Literal["random_resized", "padded", "none"] = "random_resized"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    resize: float = 256 / 224
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} of a linear probe must be positive, not {getattr(self, name)}")


_MOCO_STEPS = (0.6, 0.8)  # epochs 60 and 80 of 100

PROTOCOLS: dict[str, Protocol] = {
    "moco": Protocol(
        "MoCo (He et al., 2020), also MoCo v2, CLIM and SCE's ablations",
        epochs=100,
        batch_size=256,
        lr=30.0,
        milestones=_MOCO_STEPS,
    ),
    "sce_imagenet": Protocol(
        "SCE (Denize et al., 2023), ImageNet against the state of the art, released code",
        epochs=90,
        batch_size=1024,
        lr=0.1,
        scale_lr=True,
        per_step=True,
    ),
    "sce_small": Protocol(
        "SCE's released CIFAR-10 code",
        epochs=100,
        batch_size=256,
        lr=30.0,
        milestones=_MOCO_STEPS,
        crop="padded",
        resize=1.0,
    ),
    "clsa": Protocol(
        "CLSA (Wang and Qi, 2022), released code",
        epochs=100,
        batch_size=256,
        lr=10.0,
        final_lr=0.01,
    ),
    "dssl_cifar": Protocol(
        "DSSL (Bai et al., 2022), released CIFAR-10 code; here tested on the whole test set",
        epochs=100,
        batch_size=256,
        lr=30.0,
        milestones=_MOCO_STEPS,
        crop_scale=(0.8, 1.0),
        resize=36 / 32,
        interpolation="bicubic",
    ),
    "simsiam": Protocol(
        "SimSiam (Chen and He, 2021), also DSSL on ImageNet",
        epochs=90,
        batch_size=4096,
        lr=0.1,
        scale_lr=True,
        optimizer="lars",
    ),
    "leoclr": Protocol(
        "LeOCLR (Alkhalefi et al., 2024); the learning rate, which it does not state, is taken to be MoCo's",
        epochs=100,
        batch_size=256,
        lr=30.0,
        milestones=_MOCO_STEPS,
        interpolation="bicubic",
    ),
    "cached": Protocol(
        "no paper: moco without augmentation, on features extracted once, for machines without a GPU",
        epochs=100,
        batch_size=256,
        lr=30.0,
        milestones=_MOCO_STEPS,
        crop="none",
    ),
}


def find_protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        ValueError: if there is none; lists those that exist.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"there is no protocol {name!r}; choose one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def view_for_training(protocol: Protocol, size: int) -> ViewSpec:
    """The view of a training image, for an encoder whose input has that side, in pixels."""
    if protocol.crop == "none":
        return view_for_testing(protocol, size)
    return cropped_view(protocol.crop, size, protocol.interpolation, protocol.crop_scale)


def cropped_view(
    crop: Literal["random_resized", "padded"],
    size: int,
    interpolation: str,
    scale: tuple[float, float] = (0.08, 1.0),
) -> ViewSpec:
    """A training image's random crop of that side, in pixels, and flip; see :class:`Protocol`."""
    if crop == "random_resized":
        ops = (RandomResizedCrop(scale, interpolation=interpolation), HorizontalFlip())
        return ViewSpec(ops, (size,), name="train")
    # Does nothing to an image that has the encoder's size already.
    fit = CenterCrop(interpolation=interpolation)
    return ViewSpec((fit, RandomCrop(padding=size // 8), HorizontalFlip()), (size,), name="train")


def view_for_testing(protocol: Protocol, size: int) -> ViewSpec:
    """The view of a test image, for an encoder whose input has that side, in pixels."""
    if protocol.crop == "none":
        return evaluation_view(size)
    return eval_spec(size, short_side=round(size * protocol.resize), interpolation=protocol.interpolation)


def view_for_random_crops(protocol: Protocol, crop: TestCrop, size: int) -> ViewSpec:
    """The view of a test image in the random-crop test, for an encoder whose input has that side, in pixels.

    The image is squashed to a square of 8/7 of the input (256 for 224) and cut at random. Paper: Alkhalefi et al.,
    2024, table 7, which does not say how the cut is sampled: ``random`` is a random resized crop with MoCo v2's areas
    of 0.2 to 1, ``random_window`` a window of the input's size.

    Example:
        >>> [op.name for op in view_for_random_crops(PROTOCOLS["moco"], "random_window", 224).ops]
        ['resize', 'random_crop']
    """
    cut: RandomResizedCrop | RandomCrop
    if crop == "random":
        cut = RandomResizedCrop((0.2, 1.0), interpolation=protocol.interpolation)
    else:
        cut = RandomCrop()
    return ViewSpec((Resize(round(size * 8 / 7), protocol.interpolation), cut), (size,), name=crop)


def random_crops_text(view: ViewSpec) -> str:
    """A view of :func:`view_for_random_crops` in words.

    Example:
        >>> random_crops_text(view_for_random_crops(PROTOCOLS["moco"], "random", 224))
        'resized to 256 x 256 (bilinear), random resized crop 224 of area 0.2 to 1'
    """
    resize, cut = view.ops
    assert isinstance(resize, Resize)
    (size,) = view.sizes
    text = f"resized to {resize.side} x {resize.side} ({resize.interpolation}), random "
    if isinstance(cut, RandomResizedCrop):
        return text + f"resized crop {size} of area {cut.scale[0]:g} to {cut.scale[1]:g}"
    return text + f"crop {size}"


def learning_rate(protocol: Protocol, epoch: int | float) -> float:
    """Learning rate after so many epochs; a fraction of one counts where the rate moves at every step.

    Example:
        >>> [round(learning_rate(PROTOCOLS["moco"], epoch), 6) for epoch in (0, 59, 60, 80)]
        [30.0, 30.0, 3.0, 0.3]
    """
    start = protocol.lr * (protocol.batch_size / 256 if protocol.scale_lr else 1)
    epoch = epoch if protocol.per_step else math.floor(epoch)
    if protocol.milestones:
        return start * 0.1 ** sum(epoch >= milestone for milestone in _milestone_epochs(protocol))
    cosine = (1 + math.cos(math.pi * epoch / protocol.epochs)) / 2
    return protocol.final_lr + (start - protocol.final_lr) * cosine


def _milestone_epochs(protocol: Protocol) -> list[int]:
    """Epochs done when the rate is divided by 10."""
    return [round(milestone * protocol.epochs) for milestone in protocol.milestones]


def protocol_text(name: str, protocol: Protocol, size: int) -> str:
    """A protocol in words, with its crops in pixels for an encoder whose input has that side.

    Example:
        >>> print(protocol_text("moco", PROTOCOLS["moco"], 224))
        protocol moco: MoCo (He et al., 2020), also MoCo v2, CLIM and SCE's ablations
          100 epochs, batch 256, sgd, lr 30, divided by 10 after epochs 60 and 80
          train: random resized crop 224 of area 0.08 to 1 (bilinear), flip
          test: short side 256 (bilinear), center crop 224
    """
    rate = f"lr {learning_rate(protocol, 0):g}"
    if protocol.scale_lr:
        rate += f" ({protocol.lr:g} x {protocol.batch_size} / 256)"
    if protocol.milestones:
        rate += ", divided by 10 after epochs " + " and ".join(str(at) for at in _milestone_epochs(protocol))
    else:
        rate += f", cosine to {protocol.final_lr:g}" + protocol.per_step * ", at every step"
    train, test = (view_text(view(protocol, size)) for view in (view_for_training, view_for_testing))
    if protocol.crop == "none":
        train = "as test, features extracted once"
    return (
        f"protocol {name}: {protocol.source}\n"
        f"  {protocol.epochs} epochs, batch {protocol.batch_size}, {protocol.optimizer}, {rate}\n"
        f"  train: {train}\n"
        f"  test: {test}"
    )


def view_text(view: ViewSpec) -> str:
    """A view of training or test images in words.

    Example:
        >>> view_text(cropped_view("padded", 32, "bilinear"))
        'short side 32, padded by 4, random crop 32, flip'
    """
    (size,) = view.sizes
    match view.ops[0]:
        case RandomResizedCrop(scale=(low, high), interpolation=interpolation):
            return f"random resized crop {size} of area {low:g} to {high:g} ({interpolation}), flip"
        case CenterCrop(short_side=side, interpolation=interpolation) if len(view.ops) == 1:
            return f"short side {side or size} ({interpolation}), center crop {size}"
        case _:
            return f"short side {size}, padded by {size // 8}, random crop {size}, flip"
