"""Mixing an image with its neighbour: CutMix and mixup.

    x_mix = M * x + (1 - M) * x~                                                                 (3)

What is random about a mixture is drawn from the counter-based stream, so it depends on neither the number of
processes nor the device.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from scipy.special import betaincinv
from torch import Tensor

from ssl_core.philox import uniform

# Stands where the stream of a view has its index, which is never as large: "mix", and a byte for which one.
_MIXING_STREAM = 0x6D697800


class Mixture(NamedTuple):
    """What is random about the mixtures of a batch.

    Attributes:
        ratio: (n) lambda, drawn from Beta(alpha, alpha).
        center: (n 2) of the box, as fractions of height and width.
    """

    ratio: Float64[Tensor, " n"]
    center: Float64[Tensor, "n 2"]


def draw_mixtures(
    seed: int, step: int, rows: Int64[Tensor, " n"], *, alpha: float, per_batch: bool = False, stream: int = 0
) -> Mixture:
    """Draw the ratio and the box's center of each mixture.

    Args:
        seed: seed of the run.
        step: optimizer steps done.
        rows: (n) numbers of the images in the global batch.
        alpha: > 0, of the Beta distribution; large values make ratios near 1/2.
        per_batch: one draw for all rows, as CutMix's code has it.
        stream: number in [0, 256) that tells the draws of one step apart.

    Returns:
        The draws, on the CPU.

    Example:
        >>> mixtures = draw_mixtures(0, 7, torch.tensor([3, 4]), alpha=2.0)
        >>> mixtures.ratio.shape, mixtures.center.shape
        (torch.Size([2]), torch.Size([2, 2]))
    """
    drawn_for = torch.zeros_like(rows) if per_batch else rows
    streams = torch.stack(
        [drawn_for, torch.full_like(rows, step), torch.full_like(rows, _MIXING_STREAM | stream)], dim=1
    )
    draws = uniform(seed, streams, 3)
    ratio = betaincinv(alpha, alpha, draws[:, 0].numpy())  # the inverse of the distribution function
    return Mixture(torch.from_numpy(ratio), draws[:, 1:])


def cutmix(
    images: Float[Tensor, "n c h w"], partners: Float[Tensor, "n c h w"], mixtures: Mixture
) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, " n"]]:
    """Paste a box of each partner into its image, at the same place.

    The box has sides sqrt(1 - lambda) of the image's and its center anywhere in the image; what lies outside of it
    is cut off. The same mixtures at another size paste the same box at that resolution.
    Paper: Yun et al., 2019, section 3.1, arXiv 1905.04899.

    Args:
        images: (n c h w).
        partners: (n c h w).
        mixtures: mixtures of the n rows.

    Returns:
        (n c h w) mixed images, and (n) the fraction of each that is its own image's: the mask's mean, exactly, which
        a clipped box makes larger than lambda.

    Example:
        >>> half = Mixture(torch.tensor([0.75]).double(), torch.tensor([[0.0, 0.5]]).double())
        >>> mixed, kept = cutmix(torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4), half)
        >>> mixed[0, 0].int().tolist(), kept
        ([[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], tensor([0.8750]))
    """
    inside = []
    for axis, length in enumerate(images.shape[2:]):
        center, side = mixtures.center[:, axis], (1 - mixtures.ratio).sqrt()
        edges = torch.stack([(center + sign * side / 2) * length for sign in (-1, 1)], dim=1).round()
        edges = edges.to(images.device, torch.float32, non_blocking=True)
        pixels = torch.arange(length, device=images.device)
        inside.append((pixels >= edges[:, :1]) & (pixels < edges[:, 1:]))
    box = inside[0][:, :, None] & inside[1][:, None, :]
    kept = 1 - box.float().mean(dim=(1, 2))
    return torch.where(box[:, None], partners, images), kept


def mixup(
    images: Float[Tensor, "n c h w"], partners: Float[Tensor, "n c h w"], mixtures: Mixture
) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, " n"]]:
    """The mean of each image and its partner, weighted by lambda and 1 - lambda.

    Paper: Zhang et al., 2018, equation (1), arXiv 1710.09412.

    Args:
        images: (n c h w).
        partners: (n c h w).
        mixtures: mixtures of the n rows; their boxes play no part.

    Returns:
        (n c h w) mixed images, and (n) lambda.

    Example:
        >>> quarter = Mixture(torch.tensor([0.25]).double(), torch.zeros(1, 2).double())
        >>> mixup(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1), quarter)[0].item()
        0.75
    """
    ratio = mixtures.ratio.to(images.device, torch.float32, non_blocking=True)
    weight = ratio.to(images.dtype)[:, None, None, None]
    return weight * images + (1 - weight) * partners, ratio
