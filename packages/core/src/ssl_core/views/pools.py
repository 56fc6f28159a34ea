"""The pools that `RandAugment` samples from: which distortions there are, and how far each goes at each level.

A new pool is an entry of `POOLS`. A new distortion is a member of `ssl_core.ops.instructions.Distortion`, a case in
``views/ops/rand_augment.py``, which the type checker asks for, and one in each compiled renderer, which tests ask for.
"""

from dataclasses import dataclass

from ssl_core.ops.instructions import Distortion

# Names of what a pool may hold, in the order of their numbers; 0 leaves the image as it is.
DISTORTIONS = tuple(distortion.name.lower() for distortion in Distortion)


@dataclass(frozen=True)
class Magnitude:
    """Strength of a distortion: low + (high - low) level / top_level, in the distortion's unit.

    Args:
        low: magnitude at level 0.
        high: magnitude at the pool's top level; below ``low`` where less distorts more.
        signed: whether it is negated with probability 1/2.
        whole: whether its distance from ``low`` is cut to a whole number.
    """

    low: float = 0.0
    high: float = 0.0
    signed: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Pool:
    """Distortions that are sampled with equal probability.

    Args:
        top_level: level at which every magnitude reaches its ``high``.
        magnitudes: magnitude of each distortion, by its name in `DISTORTIONS`, in the order by which a random number
            selects one.
    """

    top_level: int
    magnitudes: dict[str, Magnitude]

    @property
    def has_cutout(self) -> bool:
        """Whether a sampled distortion needs a place too."""
        return "cutout" in self.magnitudes


# CLSA (Wang and Qi, 2020), table 1. The released code's level v is v tenths of the way through these ranges, and
# what has no magnitude is applied at every level.
_CLSA: dict[str, Magnitude] = {
    "autocontrast": Magnitude(),
    "brightness": Magnitude(0.05, 0.95),
    "color": Magnitude(0.05, 0.95),
    "contrast": Magnitude(0.05, 0.95),
    "equalize": Magnitude(),
    "identity": Magnitude(),
    "invert": Magnitude(),
    "posterize": Magnitude(4.0, 8.0, whole=True),
    "rotate": Magnitude(0.0, 30.0, signed=True),
    "sharpness": Magnitude(0.05, 0.95),
    "shear_x": Magnitude(0.0, 0.3, signed=True),
    "shear_y": Magnitude(0.0, 0.3, signed=True),
    "solarize": Magnitude(256.0, 0.0, whole=True),
    "translate_x": Magnitude(0.0, 0.3, signed=True),
    "translate_y": Magnitude(0.0, 0.3, signed=True),
}

# DSSL's released code: sixteen distortions at magnitude M of 30. A higher M is milder for posterize and solarize, and
# for the four blends up to 15, where their factor is 1.
_DSSL: dict[str, Magnitude] = {
    "autocontrast": Magnitude(),
    "equalize": Magnitude(),
    "invert": Magnitude(),
    "rotate": Magnitude(0.0, 30.0, signed=True),
    "posterize": Magnitude(0.0, 4.0, whole=True),
    "solarize": Magnitude(0.0, 256.0),
    "solarize_add": Magnitude(0.0, 110.0, whole=True),
    "color": Magnitude(0.1, 1.9),
    "contrast": Magnitude(0.1, 1.9),
    "brightness": Magnitude(0.1, 1.9),
    "sharpness": Magnitude(0.1, 1.9),
    "shear_x": Magnitude(0.0, 0.3, signed=True),
    "shear_y": Magnitude(0.0, 0.3, signed=True),
    "cutout": Magnitude(0.0, 40.0),
    "translate_x_px": Magnitude(0.0, 100.0, signed=True),
    "translate_y_px": Magnitude(0.0, 100.0, signed=True),
}


def _less(magnitudes: dict[str, Magnitude], *names: str) -> dict[str, Magnitude]:
    return {name: magnitude for name, magnitude in magnitudes.items() if name not in names}


# 100 pixels of a view of 224, as a fraction: as strong at that size, and at 32 pixels, where the code's translations
# leave nothing of the image from M = 10 on, most of it stays in sight.
_RELATIVE = Magnitude(0.0, 100 / 224, signed=True)
_DSSL_RELATIVE = _less(_DSSL, "translate_x_px", "translate_y_px")
_DSSL_RELATIVE |= {"translate_x": _RELATIVE, "translate_y": _RELATIVE}
# DSSL's paper says 14 distortions and names none: our reading is that these two of the code's are not among them.
_NOT_IN_PAPER = ("solarize_add", "cutout")

POOLS: dict[str, Pool] = {
    # CLSA's paper names Invert where the released code has Identity.
    "clsa_code14": Pool(10, _less(_CLSA, "invert")),
    "clsa_paper14": Pool(10, _less(_CLSA, "identity")),
    "dssl_code16": Pool(30, _DSSL),
    "dssl_paper14": Pool(30, _less(_DSSL, *_NOT_IN_PAPER)),
    "dssl_code16_relative": Pool(30, _DSSL_RELATIVE),
    "dssl_paper14_relative": Pool(30, _less(_DSSL_RELATIVE, *_NOT_IN_PAPER)),
}
