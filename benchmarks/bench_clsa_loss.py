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
from typing import NamedTuple

import torch
import torch.nn.functional as F
from machine import comparison_arguments, describe_machine, print_comparison, resident_bytes
from torch import Tensor

from ssl_clsa import clsa_loss

# Weak and strong views, n images, k queue rows, d dimension.
VIEWS, IMAGES, KEYS, DIM = 5, 256, 65536, 128
TEMPERATURE = 0.2


class Inputs(NamedTuple):
    """Of one step, on one device."""

    weak: Tensor
    strong: Tensor
    key: Tensor
    queue: Tensor


def make_inputs(n: int, k: int, device: torch.device) -> Inputs:
    generator = torch.Generator().manual_seed(0)

    def unit_rows(*shape: int) -> Tensor:
        return F.normalize(torch.randn(*shape, DIM, generator=generator), dim=-1).to(device)

    weak, strong = (unit_rows(VIEWS, n).requires_grad_() for _ in range(2))
    return Inputs(weak, strong, unit_rows(n), unit_rows(k))


def ours(inputs: Inputs) -> Tensor:
    return clsa_loss(*inputs, temperature=TEMPERATURE, divergence_temperature=TEMPERATURE).total


def dense_terms(inputs: Inputs) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Contrastive term, targets of the weak and log-probabilities of the strong views: ten matrices of logits."""
    columns = torch.cat([inputs.key, inputs.queue])
    own = torch.arange(len(inputs.key), device=columns.device)
    weak, strong = ([query @ columns.T / TEMPERATURE for query in queries] for queries in inputs[:2])
    contrastive = torch.stack([F.cross_entropy(logits, own) for logits in weak]).sum()
    return contrastive, [logits.detach().softmax(dim=1) for logits in weak], [F.log_softmax(x, dim=1) for x in strong]


def dense_pairs(inputs: Inputs) -> Tensor:
    contrastive, targets, log_probs = dense_terms(inputs)
    pairs = [-(target * log_prob).sum(dim=1).mean() for target in targets for log_prob in log_probs]
    return contrastive + torch.stack(pairs).sum()


def dense_averaged(inputs: Inputs) -> Tensor:
    contrastive, targets, log_probs = dense_terms(inputs)
    target = torch.stack(targets).mean(dim=0)
    return contrastive + VIEWS * torch.stack([-(target * log_prob).sum(dim=1).mean() for log_prob in log_probs]).sum()


LOSSES: dict[str, Callable[[Inputs], Tensor]] = {
    "clsa_loss": ours,
    "dense, 25 pairs": dense_pairs,
    "dense, averaged target": dense_averaged,
}


def step_of(name: str, inputs: Inputs) -> Callable[[], None]:
    def step() -> None:
        torch.autograd.grad(LOSSES[name](inputs), inputs[:2])

    return step


def measure(name: str) -> int:
    """What a call adds to its inputs; in a process of its own."""
    cpu = torch.device("cpu")
    step_of(name, make_inputs(8, 64, cpu))()  # what is loaded once
    return resident_bytes(step_of(name, make_inputs(IMAGES, KEYS, cpu)))


def main() -> None:
    arguments = comparison_arguments(__doc__, LOSSES)
    if arguments.measure:
        print(measure(arguments.measure))
        return
    device, repeats = arguments.device, arguments.repeats

    print(__doc__.partition("\n")[0])
    print(describe_machine(device))
    print(f"n {IMAGES}  k {KEYS}  d {DIM}  {VIEWS} weak and {VIEWS} strong views  float32; {repeats} runs in turns\n")
    inputs = make_inputs(IMAGES, KEYS, device)
    exact = Inputs(*(tensor.detach().double() for tensor in inputs))
    for name, loss in LOSSES.items():
        torch.testing.assert_close(loss(inputs).double(), ours(exact), rtol=1e-5, atol=0, msg=f"{name} is another loss")
    print_comparison({name: step_of(name, inputs) for name in LOSSES}, repeats, device, __file__)


if __name__ == "__main__":
    main()
