"""CLSA-Multi's loss, forward and gradient to all queries: time and memory against the dense formula.

python benchmarks/bench_clsa_loss.py              # on the GPU if there is one
python benchmarks/bench_clsa_loss.py --device cpu --quick

Five weak and five strong query sets, 25 terms of divergence, all keys of the batch as columns, float32. The dense
formula holds each of its ten distinct logit matrices once (the released code makes some of them five times over); its
25 terms are written out, or taken from the averaged target as ours are. In turns, on the same cores. Peak memory is
what a call adds to its inputs: on the CPU the rise of the resident set of a fresh process, on the GPU that of torch's
allocator.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from machine import compare_losses
from torch import Tensor

from ssl_clsa import clsa_loss

# Weak and strong views, n images, k queue rows, d dimension.
VIEWS, IMAGES, KEYS, DIM = 5, 256, 65536, 128
TEMPERATURE = 0.2


def make_inputs(n: int, k: int, device: torch.device) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)

    def unit_rows(*shape: int) -> Tensor:
        return F.normalize(torch.randn(*shape, DIM, generator=generator), dim=-1).to(device)

    weak, strong = (unit_rows(VIEWS, n).requires_grad_() for _ in range(2))
    return weak, strong, unit_rows(n), unit_rows(k)


def ours(*inputs: Tensor) -> Tensor:
    return clsa_loss(*inputs, temperature=TEMPERATURE, divergence_temperature=TEMPERATURE).total


def dense_terms(weak: Tensor, strong: Tensor, key: Tensor, queue: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Contrastive term, targets of the weak and log-probabilities of the strong views: ten matrices of logits."""
    columns = torch.cat([key, queue])
    own = torch.arange(len(key), device=columns.device)
    of_weak, of_strong = ([query @ columns.T / TEMPERATURE for query in queries] for queries in (weak, strong))
    contrastive = torch.stack([F.cross_entropy(logits, own) for logits in of_weak]).sum()
    targets = [logits.detach().softmax(dim=1) for logits in of_weak]
    return contrastive, targets, [F.log_softmax(logits, dim=1) for logits in of_strong]


def dense_pairs(*inputs: Tensor) -> Tensor:
    contrastive, targets, log_probs = dense_terms(*inputs)
    pairs = [-(target * log_prob).sum(dim=1).mean() for target in targets for log_prob in log_probs]
    return contrastive + torch.stack(pairs).sum()


def dense_averaged(*inputs: Tensor) -> Tensor:
    contrastive, targets, log_probs = dense_terms(*inputs)
    target = torch.stack(targets).mean(dim=0)
    return contrastive + VIEWS * torch.stack([-(target * log_prob).sum(dim=1).mean() for log_prob in log_probs]).sum()


LOSSES: dict[str, Callable[..., Tensor]] = {
    "clsa_loss": ours,
    "dense, 25 pairs": dense_pairs,
    "dense, averaged target": dense_averaged,
}


if __name__ == "__main__":
    shown = f"n {IMAGES}  k {KEYS}  d {DIM}  {VIEWS} weak and {VIEWS} strong views"
    compare_losses(__file__, __doc__, LOSSES, make_inputs, sizes=(IMAGES, KEYS), small=(8, 64), shown=shown)
