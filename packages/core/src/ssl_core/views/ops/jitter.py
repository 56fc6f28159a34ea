"""Colors changed at random."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ssl_core.ops.instructions import Instruction, Opcode
from ssl_core.views.color import adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation
from ssl_core.views.ops.numbers import between, check_prob

# What a jitter's order is an index into: 0 is brightness, 1 contrast, 2 saturation, 3 hue.
JITTER_ORDERS = tuple(itertools.permutations(range(4)))


@dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast, saturation and hue changed by random amounts in a random order.

    A strength b gives a factor from U(max(0, 1 - b), 1 + b); hue h gives a shift from U(-h, h), in turns of
    the color circle. What the four do for images of other than three channels is in `ssl_core.views.color`.

    Args:
        prob: probability that the image is changed at all.
        brightness: strength of the change of brightness, >= 0.
        contrast: strength of the change of contrast, >= 0.
        saturation: strength of the change of saturation, >= 0.
        hue: largest shift of the hue, in [0, 0.5].
    """

    prob: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1

    name: ClassVar[str] = "color_jitter"
    # Factors of 1 and a hue of 0 leave the image as it is; order is an index into JITTER_ORDERS.
    parameters: ClassVar[tuple[str, ...]] = ("brightness", "contrast", "saturation", "hue", "order")
    # Whether to change the image, then one for each parameter.
    num_draws: ClassVar[int] = 6

    def __post_init__(self) -> None:
        check_prob(self.name, self.prob)
        for strength in ("brightness", "contrast", "saturation"):
            if not getattr(self, strength) >= 0:
                raise ValueError(f"{self.name}: {strength} must be >= 0, got {getattr(self, strength)}")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"{self.name}: hue must be in [0, 0.5] turns, got {self.hue}")

    def sample(self, draws: Tensor, size: Tensor, side: int) -> Tensor:
        apply, *amounts, hue, order = draws.unbind(1)
        strengths = (self.brightness, self.contrast, self.saturation)
        factors = [
            torch.where(apply < self.prob, between((max(0.0, 1 - strength), 1 + strength), amount), 1.0)
            for strength, amount in zip(strengths, amounts, strict=True)
        ]
        shift = torch.where(apply < self.prob, between((-self.hue, self.hue), hue), 0.0)
        return torch.stack([*factors, shift, (order * len(JITTER_ORDERS)).floor()], dim=1)

    def render(self, image: Tensor, values: Sequence[float], side: int) -> Tensor:
        *amounts, order = values
        for change in JITTER_ORDERS[int(order)]:
            amount = amounts[change]
            if change == 3:
                image = adjust_hue(image, amount) if amount else image
            elif amount != 1:
                image = (adjust_brightness, adjust_contrast, adjust_saturation)[change](image, amount)
        return image

    def instructions(self) -> list[Instruction]:
        return [Instruction(Opcode.JITTER)]
