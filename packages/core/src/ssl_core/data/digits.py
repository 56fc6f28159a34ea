"""The embedded set: scikit-learn's scans of handwritten digits, placed at random on a larger canvas.

Pixels alone tell the scans as they are (8 x 8, centered, upright) apart, 98 % of them by nearest neighbors, which
leaves nothing to learn. At a random size, position and rotation they do not match pixel by pixel any more.
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int64, UInt8
from torch import Tensor

from ssl_core.philox import permutation, uniform

CANVAS = 32  # pixels a side
NUM_TEST_SCANS = 400  # of 1,797, chosen at random
TRAIN_PLACEMENTS, TEST_PLACEMENTS = 1, 2  # images of each scan
DIGIT_SIZES = (10.0, 24.0)  # side of the scan on the canvas, pixels
MAX_ROTATION_DEG = 10.0

_SEED = 0x646967697473  # "digits": one set for everyone, whatever the run's seed


def draw_digits(*, train: bool) -> tuple[UInt8[Tensor, "n 1 size size"], Int64[Tensor, " n"]]:
    """Images of digits and their labels; no scan is in both the training and the test images.

    Args:
        train: whether to take the 1,397 scans of the training set, each placed once, or the 400 of the test set, each
            placed twice.

    Returns:
        (n 1 32 32) images, white on black, and their labels (n); the images of one scan follow each other.
    """
    from sklearn.datasets import load_digits  # a second of import that no other source needs

    digits = load_digits()
    scans = torch.from_numpy(digits.images.astype(np.float32)) / 16
    order = permutation(_SEED, (0, 0), len(scans))
    chosen, placements = (
        (order[NUM_TEST_SCANS:], TRAIN_PLACEMENTS) if train else (order[:NUM_TEST_SCANS], TEST_PLACEMENTS)
    )
    chosen = chosen.repeat_interleave(placements)
    placement = torch.arange(placements).repeat(len(chosen) // placements)
    size, angle, x, y = uniform(_SEED, torch.stack([chosen, placement, placement * 0], dim=1), 4).float().unbind(1)

    scale = (DIGIT_SIZES[0] + size * (DIGIT_SIZES[1] - DIGIT_SIZES[0])) / CANVAS
    angle = torch.deg2rad((2 * angle - 1) * MAX_ROTATION_DEG)
    # The scan's center, such that the unrotated scan stays on the canvas; in [-1, 1], as grid_sample counts.
    center = (torch.stack([x, y], dim=1) * 2 - 1) * (1 - scale)[:, None]
    rotation = torch.stack([angle.cos(), angle.sin(), -angle.sin(), angle.cos()], dim=1).reshape(-1, 2, 2)
    to_scan = rotation / scale[:, None, None]
    matrix = torch.cat([to_scan, -to_scan @ center[:, :, None]], dim=2)
    grid = F.affine_grid(matrix, [len(chosen), 1, CANVAS, CANVAS], align_corners=False)
    images = F.grid_sample(scans[chosen][:, None], grid, align_corners=False)
    return (images * 255).round().to(torch.uint8), torch.from_numpy(digits.target)[chosen].long()
