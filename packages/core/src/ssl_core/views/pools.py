"""The pools that `RandAugment` draws from: which distortions there are, and how far each goes at each level.

Numbers and names only, as in `spec.py`. A new pool is an entry of `POOLS`; a new distortion is a name in
`Distortion` and one case in `render.py`, which the type checker asks for.
"""

from dataclasses import dataclass
from typing import Literal, get_args

Distortion = Literal[
    "identity",
    "autocontrast",
    "brightness",  # factor, as the other three enhancements
    "color",
    "contrast",
    "equalize",
    "invert",
    "posterize",  # bits that are kept of each 8-bit value
    "rotate",  # degrees, counter-clockwise
    "sharpness",
    "shear_x",  # pixels to the left for each row down
    "shear_y",  # pixels up for each column to the right
    "solarize",  # lowest 8-bit value that is inverted
    "translate_x",  # fraction of the width, to the left
    "translate_y",  # fraction of the height, up
]

# What a drawn distortion is an index into; 0 leaves the image as it is.
DISTORTIONS: tuple[Distortion, ...] = get_args(Distortion)


@dataclass(frozen=True)
class Magnitude:
    """How far a distortion goes: low + (high - low) level / top_level, in the distortion's unit.

    Args:
        low: magnitude at level 0.
        high: magnitude at the pool's top level; below ``low`` where less distorts more.
        signed: negated with probability 1/2.
        whole: the distance from ``low`` is cut to a whole number.
    """

    low: float = 0.0
    high: float = 0.0
    signed: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Pool:
    """Distortions that are drawn with equal probability.

    Args:
        top_level: where every magnitude reaches its ``high``.
        magnitudes: of each distortion; a draw indexes them in this order.
    """

    top_level: int
    magnitudes: dict[Distortion, Magnitude]


# CLSA (Wang and Qi, 2020), table 1. The released code's level v is v tenths of the way through these ranges, and
# what has no magnitude is applied at every level.
_CLSA: dict[Distortion, Magnitude] = {
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

# The paper names Invert where the released code has Identity.
POOLS: dict[str, Pool] = {
    "clsa_code14": Pool(10, {name: magnitude for name, magnitude in _CLSA.items() if name != "invert"}),
    "clsa_paper14": Pool(10, {name: magnitude for name, magnitude in _CLSA.items() if name != "identity"}),
}
