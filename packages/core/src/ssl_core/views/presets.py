"""Views by name, with the numbers of the papers.

Order of ops as in SCE's released CIFAR-10 code: crop, color jitter, gray, blur, (solarize,) flip. The flip's
place makes no difference to the picture where every other op treats left and right alike; RandAugment, which does
not, comes after it.
"""

from ssl_core.views.op import ViewOp
from ssl_core.views.ops import (
    CenterCrop,
    Choice,
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    Jigsaw,
    RandAugment,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    Solarize,
)
from ssl_core.views.spec import ViewSpec

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

_DSSL_CIFAR: tuple[ViewOp, ...] = (_CROP, HorizontalFlip(), _JITTER, Grayscale(prob=0.2))
_DSSL_IMAGENET: tuple[ViewOp, ...] = (*_DSSL_CIFAR, GaussianBlur(prob=0.5))


_BICUBIC_CROP = RandomResizedCrop(scale=(0.08, 1.0), interpolation="bicubic")


def _simclr(strength: float) -> tuple[ViewOp, ...]:
    """SimCLR (Chen et al., 2020), appendix A and code, but for its blur."""
    jitter = ColorJitter(0.8, 0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength)
    return (_BICUBIC_CROP, HorizontalFlip(), jitter, Grayscale(prob=0.2))


def _dssl_rand_augment(num_ops: int, magnitude: int) -> RandAugment:
    return RandAugment("dssl_code16", num_ops, prob=1.0, level_range=(magnitude, magnitude))


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
    # SimCLR, with the blur of AndrewAtanov/simclr-pytorch, which its authors recommend; its appendix B.9 halves the
    # jitter's strength for CIFAR-10 and does not blur.
    "simclr_imagenet": (*_simclr(1.0), GaussianBlur(prob=0.5, sigma=(0.2, 2.0))),
    "simclr_cifar": _simclr(0.5),
    # Barlow Twins (Zbontar et al., 2021), whose two views differ, as BYOL's.
    "barlow_1": (_BICUBIC_CROP, HorizontalFlip(), _JITTER_ALPHA, Grayscale(prob=0.2), GaussianBlur(prob=1.0)),
    "barlow_2": (
        _BICUBIC_CROP,
        HorizontalFlip(),
        _JITTER_ALPHA,
        Grayscale(prob=0.2),
        GaussianBlur(prob=0.1),
        Solarize(prob=0.2),
    ),
    # DSSL's standard views (Bai et al., 2022), as its released code has them for SimSiam; of its BYOL code; and of the
    # paper's figure 4. Its heavy views are `HEAVY`.
    "dssl_cifar": _DSSL_CIFAR,
    "dssl_imagenet": _DSSL_IMAGENET,
    "dssl_byol": (_dssl_rand_augment(2, 9), *_DSSL_IMAGENET),
    "dssl_crop_color": (_CROP, _JITTER, Grayscale(prob=0.2)),
    # For probes of a frozen encoder: training images, and test images.
    "crop_flip": (RandomResizedCrop(scale=(0.08, 1.0)), HorizontalFlip()),
    "padded_crop": (RandomCrop(padding=4), HorizontalFlip()),
    "plain": (CenterCrop(),),
}

# DSSL's heavy augmentations: what follows a standard view, in a view derived from it. ra_<n>_<m> samples n of the
# code's sixteen distortions, each at magnitude m of 30 and always applied.
HEAVY: dict[str, tuple[ViewOp, ...]] = {
    # The released code: SimSiam on CIFAR-10 and on ImageNet, and BYOL on ImageNet.
    "cifar_code": (_dssl_rand_augment(2, 9),),
    "imagenet_code": (Choice(0.9, (_dssl_rand_augment(2, 9),), (Jigsaw(4),)),),
    "byol_harder": (
        _dssl_rand_augment(8, 16),
        _CROP,
        HorizontalFlip(),
        ColorJitter(prob=0.8, brightness=0.5, contrast=0.5, saturation=0.5, hue=0.1),
        Grayscale(prob=0.2),
        GaussianBlur(prob=0.5),
        Jigsaw(4, prob=0.1),
    ),
    # The paper's text, "unless otherwise specified".
    "paper": (_dssl_rand_augment(2, 5), Jigsaw(4)),
    # Rows of the paper's figure 1 and of its table 3.
    "ra_1_1": (_dssl_rand_augment(1, 1),),
    "ra_2_1": (_dssl_rand_augment(2, 1),),
    "ra_2_5": (_dssl_rand_augment(2, 5),),
    "ra_2_9": (_dssl_rand_augment(2, 9),),
    "ra_4_10": (_dssl_rand_augment(4, 10),),
    "ra_8_16": (_dssl_rand_augment(8, 16),),
    "jigsaw_2": (Jigsaw(2),),
    "jigsaw_4": (Jigsaw(4),),
    # UniformAugment samples a magnitude and a probability for each distortion, both uniform. What is applied with a
    # probability that is itself uniform in [0, 1] is applied with probability 1/2, so it is a RandAugment.
    "ua": (RandAugment("dssl_code16", num_ops=2, prob=0.5, level_range="continuous"),),
}


def eval_spec(size: int, *, short_side: int | None = None, interpolation: str = "bilinear") -> ViewSpec:
    """A view without randomness: the short side resized to ``short_side``, then the central square.

    Args:
        size: side of the view in pixels.
        short_side: short side of the resized image in pixels, at least ``size``; None is ``size``, which gives the
            largest central square.
        interpolation: filter of the resizing, bilinear or bicubic.

    Example:
        >>> eval_spec(224, short_side=256).ops
        (CenterCrop(short_side=256, interpolation='bilinear'),)
    """
    return ViewSpec((CenterCrop(short_side, interpolation),), (size,), name="plain")
