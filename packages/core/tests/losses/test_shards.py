"""Losses over a queue that two or four processes share: value and gradient are those of the whole queue in one."""

import functools
from pathlib import Path

import pytest
import torch
from torch import nn

from ssl_core import distributed
from ssl_core.losses import Columns, info_nce, key_softmax, soft_target_cross_entropy, soft_target_terms
from ssl_core.nn import Queue, QueueConfig
from ssl_core.testing import DOUBLE
from ssl_core.testing.ranks import run_as_ranks

ROWS, VIEWS, DIM, KEYS = 12, 2, 5, 24


def softmax_terms(query, positive, columns, temperature, *, backend=None):
    """CLSA's terms; with the reference the target has a gradient as well."""
    softmax = key_softmax(query, positive, columns, [temperature, 0.3], backend=backend)
    return softmax.lse - (query * softmax.expectation.flip(0)).sum(dim=-1) / 0.3 - softmax.log_prob


def all_terms(query, positive, columns, temperature, **options):
    terms = soft_target_terms(
        query, positive, positive.flip(1), columns, temperature=temperature, target_temperature=0.05, **options
    )
    return terms.contrastive + 2 * terms.relational + 3 * terms.ceiling + terms.self_prob


def soft_target(query, positive, columns, temperature, **options):
    options |= {"target_temperature": 0.05, "coefficient": 0.3, "self_similarity": "zero"}
    return soft_target_cross_entropy(query, positive, positive.flip(1), columns, temperature=temperature, **options)


def several_positives(query, positive, columns, temperature, **options):
    return info_nce(query[0], torch.stack([positive, positive.flip(1)]), columns, temperature, **options)


LOSSES = {
    "info_nce": lambda query, *others, **options: info_nce(query[0], *others, **options),
    "several positives": several_positives,
    "terms": all_terms,
    "soft target": soft_target,
    "softmax": softmax_terms,
}
CASES = {
    **{name: {"loss": name} for name in LOSSES},
    **{f"{name}, in batch": {"loss": name, "in_batch": True} for name in LOSSES},
    **{f"{name}, reference": {"loss": name, "backend": "reference"} for name in LOSSES},
    **{f"{name}, {filled} rows": {"loss": name, "filled": filled} for name in LOSSES for filled in (0, 4, 20)},
    "tiled": {"loss": "terms", "backend": "tiled"},
    "a number as temperature": {"loss": "terms", "temperature": 0.1},
}


def evaluated(loss, rank, processes, *, in_batch=False, filled=None, backend=None, temperature=None):
    """Losses of the rows of a process, and their gradient to a weight and a temperature."""
    generator = torch.Generator().manual_seed(0)
    draw = functools.partial(torch.randn, generator=generator, dtype=torch.float64)
    images, weight, positive = draw(VIEWS, ROWS, 7), draw(7, DIM), draw(ROWS, DIM)
    weight.requires_grad_()
    learned = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    queue = Queue(QueueConfig(KEYS, "random" if filled is None else "empty", sharded=True), DIM).double()
    if filled:
        queue.enqueue_(nn.functional.normalize(draw(filled, DIM), dim=1))
    rows = ROWS // processes
    own = slice(rank * rows, (rank + 1) * rows)
    query, key = (nn.functional.normalize(part, dim=-1) for part in (images[:, own] @ weight, positive))
    columns = queue.columns(key, own.start) if in_batch else queue.columns()
    losses = LOSSES[loss](query, key[own], columns, temperature or learned, backend=backend)
    (losses.sum() / ROWS).backward()
    gradients = [parameter.grad for parameter in (weight, learned) if parameter.grad is not None]
    return losses.detach(), gradients


def evaluate_as_rank(folder: Path) -> None:
    distributed.setup(torch.device("cpu"))
    rank, processes = distributed.rank(), distributed.world_size()
    torch.save(
        {name: evaluated(rank=rank, processes=processes, **case) for name, case in CASES.items()}, folder / f"{rank}.pt"
    )


@pytest.fixture(scope="module", params=[2, 4])
def of_ranks(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    run_as_ranks(evaluate_as_rank, (folder,), processes=request.param)
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


@pytest.mark.distributed
@pytest.mark.parametrize("name", CASES)
def test_shards_give_the_losses_and_the_gradient_of_the_whole_queue(of_ranks, name):
    losses, gradients = evaluated(rank=0, processes=1, **CASES[name])
    assert losses.isfinite().all()
    assert any(gradient.abs().max() > 1e-4 for gradient in gradients) or CASES[name].get("filled") == 0
    together = torch.cat([of_rank[name][0] for of_rank in of_ranks], dim=-1)
    torch.testing.assert_close(together, losses, rtol=DOUBLE, atol=DOUBLE)
    for index, expected in enumerate(gradients):
        total = torch.stack([of_rank[name][1][index] for of_rank in of_ranks]).sum(dim=0)
        torch.testing.assert_close(total, expected, rtol=DOUBLE, atol=DOUBLE)


def test_what_is_said_to_be_a_shard_is_the_whole_queue_in_one_process():
    query = nn.functional.normalize(torch.randn(4, DIM), dim=1)
    keys = nn.functional.normalize(torch.randn(KEYS, DIM), dim=1)
    assert torch.equal(info_nce(query, query, Columns(keys, is_sharded=True), 0.2), info_nce(query, query, keys, 0.2))
