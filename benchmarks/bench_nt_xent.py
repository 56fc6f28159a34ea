"""SimCLR's loss of two views, forward and gradient to both: time and memory against the dense formula.

python benchmarks/bench_nt_xent.py              # on the GPU if there is one
python benchmarks/bench_nt_xent.py --device cpu --quick

The dense formula is that of common code: all 2n rows against each other, the diagonal masked, cross-entropy with the
other view's place as label. float32, one process. In turns, on the same cores. Peak memory is what a call adds to its
inputs: on the CPU the rise of the resident set of a fresh process, on the GPU that of torch's allocator.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from machine import compare_losses
from torch import Tensor

from ssl_core.losses import nt_xent

IMAGES, DIM = 4096, 128
TEMPERATURE = 0.5


def make_inputs(n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Two views of each image whose projections are alike, as in training."""
    generator = torch.Generator().manual_seed(0)
    first = F.normalize(torch.randn(n, DIM, generator=generator), dim=1)
    second = F.normalize(first + 0.1 * torch.randn(n, DIM, generator=generator), dim=1)
    return first.to(device).requires_grad_(), second.to(device).requires_grad_()


def dense(first: Tensor, second: Tensor) -> Tensor:
    rows = torch.cat([first, second])
    itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    logits = (rows @ rows.T / TEMPERATURE).masked_fill(itself, -torch.inf)
    other_view = torch.arange(len(rows), device=rows.device).roll(len(first))
    return F.cross_entropy(logits, other_view)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "nt_xent": lambda first, second: nt_xent(first, second, TEMPERATURE),
    "dense": dense,
}


if __name__ == "__main__":
    compare_losses(__file__, __doc__, LOSSES, make_inputs, sizes=(IMAGES,), small=(16,), shown=f"n {IMAGES}  d {DIM}")
