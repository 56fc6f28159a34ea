"""Mixtures of an image and its neighbor: CutMix and mixup.

    x_mix = M * x + (1 - M) * x~                                                                 (3)

The random numbers of a mixture come from the counter-based stream, so they depend on neither the number of processes
nor the device.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from scipy.special import betaincinv
from torch import Tensor

from ssl_core.philox import uniform

# Takes the place of a view's index in its stream, which is never as large: "mix", and a byte to tell mixtures apart.
_MIXING_STREAM = 0x6D697800


class Mixture(NamedTuple):
    """The random numbers of a batch's mixtures.

    Attributes:
        ratio: (n) lambda of each image, a sample of Beta(alpha, alpha).
        center: (n 2) center of each image's box, as fractions of height and width.
    """

    ratio: Float64[Tensor, " n"]
    center: Float64[Tensor, "n 2"]


def draw_mixtures(
    seed: int, step: int, rows: Int64[Tensor, " n"], *, alpha: float, per_batch: bool = False, stream: int = 0
) -> Mixture:
    """The ratio and the box's center of each mixture, sampled.

    Args:
        seed: seed of the run.
        step: optimizer steps done.
        rows: (n) numbers of the images in the global batch.
        alpha: parameter of the Beta distribution, > 0; large values make ratios near 1/2.
        per_batch: whether one sample serves all rows, as in CutMix's code.
        stream: number in [0, 256) that tells apart the samples of one step.

    Returns:
        The samples, on the CPU.

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

    The sides of the box are sqrt(1 - lambda) times the image's, and its center may be anywhere in the image, whose
    edges clip the box. The same mixtures at another size paste the same box at that resolution.
    Paper: Yun et al., 2019, section 3.1, arXiv 1905.04899.

    Args:
        images: (n c h w) images.
        partners: (n c h w) partner of each image.
        mixtures: mixtures of the n rows.

    Returns:
        (n c h w) mixed images, and (n) fractions of them that are the image's own. A fraction is the exact mean of
        the mask, which a clipped box makes larger than lambda.

    Example:
        >>> half = Mixture(torch.tensor([0.75]).double(), torch.tensor([[0.0, 0.5]]).double())
        >>> mixed, kept = cutmix(torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4), half)
        >>> mixed[0, 0].int().tolist(), kept
        ([[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], tensor([0.8750]))
    """
    inside = []
    for axis, length in enumerate(images.shape[2:]):
        center, side = mixtures.center[:, axis], (1 - mixtures.ratio).sqrt()
        edges = torch.stack([(center + sign * side / 2) * length for sign in (-1, 1)], dim=1).round()  # (n 2)
        edges = edges.to(images.device, torch.float32, non_blocking=True)
        pixels = torch.arange(length, device=images.device)
        inside.append((pixels >= edges[:, :1]) & (pixels < edges[:, 1:]))  # (n h), then (n w)
    box = inside[0][:, :, None] & inside[1][:, None, :]  # (n h w)
    kept = 1 - box.float().mean(dim=(1, 2))  # (n)
    return torch.where(box[:, None], partners, images), kept


def mixup(
    images: Float[Tensor, "n c h w"], partners: Float[Tensor, "n c h w"], mixtures: Mixture
) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, " n"]]:
    """The mean of each image and its partner, weighted by lambda and 1 - lambda.

    Paper: Zhang et al., 2018, equation (1), arXiv 1710.09412.

    Args:
        images: (n c h w) images.
        partners: (n c h w) partner of each image.
        mixtures: mixtures of the n rows, whose boxes play no part.

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
