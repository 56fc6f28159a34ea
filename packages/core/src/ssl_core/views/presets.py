"""Views by name, with the numbers of the papers.

Order of ops as in SCE's released CIFAR-10 code: crop, colour jitter, gray, blur, (solarise,) flip. The flip's
place makes no difference to the picture where every other op treats left and right alike; RandAugment, which does
not, comes after it.
"""

from ssl_core.views.spec import (
    CenterCrop,
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    RandAugment,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    Solarize,
    ViewOp,
    ViewSpec,
)

_CROP = RandomResizedCrop(scale=(0.2, 1.0))
_JITTER = ColorJitter(prob=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
# SCE (Denize et al., 2023), table 2: alpha, beta and gamma jitter saturation half as much as strong does.
_JITTER_ALPHA = ColorJitter(prob=0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
_STRONG: tuple[ViewOp, ...] = (
    _CROP,
    _JITTER,
    Grayscale(prob=0.2),
    GaussianBlur(prob=0.5),
    HorizontalFlip(),
)
_MOCO_CIFAR: tuple[ViewOp, ...] = (
    RandomResizedCrop(scale=(0.08, 1.0)),
    HorizontalFlip(),
    _JITTER,
    Grayscale(prob=0.2),
)

PRESETS: dict[str, tuple[ViewOp, ...]] = {
    # SCE, table 2. Local crops are these with another crop scale.
    "weak": (_CROP, HorizontalFlip()),
    "strong": _STRONG,
    "strong_alpha": (
        _CROP,
        _JITTER_ALPHA,
        Grayscale(prob=0.2),
        GaussianBlur(prob=1.0),
        HorizontalFlip(),
    ),
    "strong_beta": (
        _CROP,
        _JITTER_ALPHA,
        Grayscale(prob=0.2),
        GaussianBlur(prob=0.1),
        Solarize(prob=0.2),
        HorizontalFlip(),
    ),
    "strong_gamma": (
        _CROP,
        _JITTER_ALPHA,
        Grayscale(prob=0.2),
        GaussianBlur(prob=0.5),
        Solarize(prob=0.2),
        HorizontalFlip(),
    ),
    # MoCo v2 (Chen et al., 2020): the numbers and the order of SCE's strong.
    "moco_v2": _STRONG,
    # MoCo's CIFAR-10 notebook: torchvision's default crop scale, no blur, and its own order.
    "moco_cifar": _MOCO_CIFAR,
    # CLSA: its weak view is moco_v2. Its released code distorts that view, to which one reading of its
    # Algorithm 1 is the crop alone.
    "clsa_strong": (*_STRONG, RandAugment()),
    "clsa_strong_crop": (_CROP, RandAugment()),
    # LeOCLR's anchors (Alkhalefi et al., 2024): the whole image, squashed to the view's size, in place of the crop.
    "moco_v2_uncropped": (Resize(), *_STRONG[1:]),
    "moco_cifar_uncropped": (Resize(), *_MOCO_CIFAR[1:]),
    # For probes of a frozen encoder: training images, and test images.
    "crop_flip": (RandomResizedCrop(scale=(0.08, 1.0)), HorizontalFlip()),
    "padded_crop": (RandomCrop(padding=4), HorizontalFlip()),
    "plain": (CenterCrop(),),
}


def eval_spec(size: int, *, short_side: int | None = None, interpolation: str = "bilinear") -> ViewSpec:
    """A view without randomness: the short side resized to ``short_side``, then the central square.

    Args:
        size: side of the view in pixels.
        short_side: pixels, at least ``size``; None is ``size``: the largest central square.
        interpolation: bilinear or bicubic.

    Example:
        >>> eval_spec(224, short_side=256).ops
        (CenterCrop(short_side=256, interpolation='bilinear'),)
    """
    return ViewSpec((CenterCrop(short_side, interpolation),), (size,), name="plain")
