"""Barlow Twins' loss of two views, forward and gradient to both: time and memory against the dense formula.

python benchmarks/bench_barlow_twins.py              # on the GPU if there is one
python benchmarks/bench_barlow_twins.py --device cpu --quick

The paper's projector is 8192 wide, so the matrix of correlations has 67 million entries; ours goes through two of n n.
The dense formula is that of common code: the whole matrix, its diagonal and the rest of it. float32, one process. In
turns, on the same cores. Peak memory is what a call adds to its inputs: on the CPU the rise of the resident set of a
fresh process, on the GPU that of torch's allocator.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from machine import compare_losses
from torch import Tensor

from ssl_core.losses import barlow_twins

IMAGES, DIM = 512, 8192
OFF_DIAGONAL_WEIGHT = 0.0051


def make_inputs(n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Two views of each image whose projections are alike, as in training."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(n, DIM, generator=generator)
    second = first + 0.5 * torch.randn(n, DIM, generator=generator)
    return first.to(device).requires_grad_(), second.to(device).requires_grad_()


def dense(first: Tensor, second: Tensor) -> Tensor:
    first, second = (F.batch_norm(view, None, None, training=True) for view in (first, second))
    correlation = first.T @ second / len(first)
    on_diagonal = (correlation.diagonal() - 1).square().sum()
    off_diagonal = correlation.flatten()[1:].view(DIM - 1, DIM + 1)[:, :-1].square().sum()
    return on_diagonal + OFF_DIAGONAL_WEIGHT * off_diagonal


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "barlow_twins": lambda first, second: barlow_twins(first, second, off_diagonal_weight=OFF_DIAGONAL_WEIGHT),
    "dense": dense,
}


if __name__ == "__main__":
    compare_losses(__file__, __doc__, LOSSES, make_inputs, sizes=(IMAGES,), small=(16,), shown=f"n {IMAGES}  d {DIM}")
