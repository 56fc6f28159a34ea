"""Run by test_compile.py in a process without the jaxtyping hook, which Dynamo cannot trace.

Compares each op and loss with its own compiled form (no graph break allowed), for two batch sizes.
"""

import torch
import torch.nn.functional as F

from ssl_core.losses import Columns, barlow_twins, info_nce, negative_cosine, nt_xent, soft_target_cross_entropy
from ssl_core.ops import enqueue_, momentum_update_, queue_attention

QUEUE = F.normalize(torch.randn(37, 8, generator=torch.Generator().manual_seed(0)), dim=1)


def unit_rows(n, seed):
    return F.normalize(torch.randn(n, 8, generator=torch.Generator().manual_seed(seed)), dim=1)


def attention_loss(query, temperature, length, exclude):
    lse, expectation = queue_attention(query, QUEUE, temperature, length=length, exclude=exclude)
    return lse.sum() + expectation.sum()


def losses(query, key, length, coefficient):
    soft = soft_target_cross_entropy(
        query,
        key,
        key,
        Columns(QUEUE, length, key),
        temperature=0.1,
        target_temperature=0.05,
        coefficient=coefficient,
    )
    return (soft + info_nce(query, key, Columns(QUEUE, 5), 0.1)).sum()


def batch_loss(query, other):
    batch = torch.cat([query, QUEUE]), torch.cat([other, QUEUE.flip(0)])
    gathered = nt_xent(query, other, 0.1, batch=batch)
    return gathered + nt_xent(query, other, 0.1) + barlow_twins(query, other) + negative_cosine(query, other).sum()


def dense_loss(query):
    return queue_attention(query, QUEUE, 0.1, backend="reference")[0].sum()


def update(queue, keys, cursor, length, target, online):
    enqueue_(queue, keys, cursor, length)
    momentum_update_([target], [online], 0.9)


def assert_compiles_with_gradient(function, *arguments, dynamic):
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for n in (3, 5):
        results = []
        for f in (function, compiled):
            query = unit_rows(n, seed=1).requires_grad_()
            loss = f(query, *(argument(n) for argument in arguments))
            loss.backward()
            results.append((loss.detach(), query.grad))
        torch.testing.assert_close(results[1], results[0], msg=lambda text: f"{function.__name__}: {text}")


def assert_update_compiles():
    compiled = torch.compile(update, fullgraph=True, backend="aot_eager")
    states = []
    for f in (update, compiled):
        state = (torch.zeros(4, 8), torch.tensor(3), torch.tensor(2), torch.ones(5))
        queue, cursor, length, target = state
        for seed in (1, 2):
            f(queue, unit_rows(3, seed), cursor, length, target, torch.zeros(5))
        states.append(state)
    torch.testing.assert_close(states[1], states[0])


def main():
    length = torch.tensor(20)
    assert_compiles_with_gradient(
        attention_loss, lambda n: torch.full((n,), 0.1), lambda n: length, torch.arange, dynamic=True
    )
    assert_compiles_with_gradient(losses, lambda n: unit_rows(n, 2), lambda n: length, lambda n: 0.5, dynamic=None)
    assert_compiles_with_gradient(batch_loss, lambda n: unit_rows(n, 2), dynamic=None)
    assert_compiles_with_gradient(dense_loss, dynamic=None)
    assert_update_compiles()


if __name__ == "__main__":
    main()
