"""Losses against a queue of past keys: a few lines of algebra over ``ssl_core.ops.queue_attention``.

A query q_i has one positive k+_i and the columns k_j (:class:`Columns`): the queue, and with ``batch_keys`` the other
keys of the global batch. With lse_i and E_i of the columns and p_ii the probability that the student gives to the
positive,

    s+_i = q_i.k+_i / tau    p_ii = sigmoid(s+_i - lse_i)    -sum_j w_ij log p_ij = lse_i - q_i.E^w_i / tau

where E^w is the mean of the columns under the target w: cross-entropy with soft targets is linear in the
keys, so no loss here ever holds a similarity of a query and a column. Everything is computed in float32
(float64 for float64), whatever autocast says, and only ``query`` (and a ``temperature`` that asks for it)
receives a gradient. The losses rely on unit length (``normalized=True``): much longer vectors overflow at low
temperatures.

Shapes: n queries, d dimension, k queue rows, p positives per query, v views that share a target, m keys of the global
batch, r rows of one pass: the queries of all views and sets, stacked.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ssl_core import distributed
from ssl_core.losses.precision import at_least_float32
from ssl_core.ops import queue_attention, with_gradient


class Columns(NamedTuple):
    """The keys that all queries of a batch are compared with: a queue, and the other keys of the batch.

    Every loss here also takes a queue's keys (k d) alone.

    Attributes:
        keys: (k d) keys of the queue, l2-normalized, no gradient.
        length: number of the queue's rows that count, an int or a scalar tensor; None counts all.
        batch_keys: (m d) keys of all processes in rank order, l2-normalized, no gradient, of which each query sees
            all but its own; None for the queue alone.
        row_offset: row of ``batch_keys`` that is the first query's own.
        is_sharded: whether ``keys`` and ``length`` are this process's share of a queue that all processes hold
            together. Each then asks for the losses of equally many queries, at the same time.
    """

    keys: Tensor
    length: int | Tensor | None = None
    batch_keys: Tensor | None = None
    row_offset: int = 0
    is_sharded: bool = False


def info_nce(
    query: Float[Tensor, "n d"],
    positive: Float[Tensor, "n d"] | Float[Tensor, "p n d"],
    columns: Float[Tensor, "k d"] | Columns,
    temperature: float | Float[Tensor, ""],
    *,
    backend: str | None = None,
) -> Float[Tensor, " n"] | Float[Tensor, "p n"]:
    """InfoNCE of each query: -log of the probability of its positive among positive and columns.

    L_i = -log(exp(s+_i) / (exp(s+_i) + sum_j exp(q_i.k_j / tau))), s+_i = q_i.k+_i / tau, j over columns.
    Paper: He et al., 2020, eq. (1), 1911.05722.  tau = temperature.
    Several positives share one pass over the columns, each with its own denominator.
    With no column the loss is 0.

    Args:
        query: (n d) l2-normalized; gradient flows.
        positive: (n d), or (p n d) for p positives of each query, l2-normalized, no gradient.
        columns: keys that the queries are compared with; a (k d) tensor is a queue alone.
        temperature: tau, divisor of the similarities, > 0.
        backend: implementation of ``queue_attention``; None lets it choose.

    Returns:
        (n) or (p n) loss per row, nats.

    Raises:
        ValueError: if sizes disagree or temperature <= 0.

    Example:
        >>> query = torch.tensor([[1.0, 0.0]])
        >>> info_nce(query, query, torch.tensor([[0.0, 1.0]]), 0.5)  # log(1 + e^-2)
        tensor([0.1269])
    """
    lse, _ = _attention(query, len(query), columns, temperature, backend)  # (n)
    return -F.logsigmoid(_logit(query, positive, temperature) - lse)


class SoftTargetTerms(NamedTuple):
    """The terms whose weighted sum is cross-entropy with a soft target; nats, 0 where there is no column.

    The first three are (n), or (v n) for v views of each image.

    Attributes:
        contrastive: InfoNCE, -log p_ii.
        relational: ReSSL's cross-entropy over the columns alone, -sum_j s2_ij log s1_ij, where s1 and s2 are the
            softmaxes of the query's and the target query's similarities (Zheng et al., 2021, 2107.09282); at least the
            target's entropy.
        ceiling: -log(1 - p_ii), where 1 - p_ii is the mass that the student gives to the columns.
        self_prob: (n) probability that the target's softmax gives to the positive if its similarity there is 0; no
            gradient.
    """

    contrastive: Tensor
    relational: Tensor
    ceiling: Tensor
    self_prob: Tensor


def soft_target_terms(
    query: Float[Tensor, "n d"] | Float[Tensor, "v n d"],
    positive: Float[Tensor, "n d"],
    target_query: Float[Tensor, "n d"],
    columns: Float[Tensor, "k d"] | Columns,
    *,
    temperature: float | Float[Tensor, ""],
    target_temperature: float | Float[Tensor, ""],
    backend: str | None = None,
) -> SoftTargetTerms:
    """Contrastive, relational and ceiling term of each query, from one pass over the columns.

    Paper: Denize et al., 2023, proposition 1, 2111.14585.  tau = temperature, tau_m = target_temperature.

    Args:
        query: (n d), or (v n d) for v views of each image that share one target, l2-normalized; gradient flows.
        positive: (n d) l2-normalized, no gradient.
        target_query: (n d) l2-normalized, no gradient; whose similarities to the columns are the target.
        columns: keys that the queries are compared with; a (k d) tensor is a queue alone.
        temperature: tau, divisor of the query's similarities, > 0.
        target_temperature: tau_m, divisor of the target query's similarities, > 0.
        backend: implementation of ``queue_attention``; None lets it choose.

    Returns:
        The terms.

    Raises:
        ValueError: if sizes disagree or a temperature is <= 0.

    Example:
        >>> query, queue = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> terms = soft_target_terms(query, query, query, queue, temperature=0.5, target_temperature=0.5)
        >>> terms.contrastive, terms.ceiling  # log(1 + e^-2), log(1 + e^2)
        (tensor([0.1269]), tensor([2.1269]))
    """
    query = at_least_float32(query)
    students = query.reshape(-1, query.shape[-1])  # (vn d)
    split = len(students)
    rows = torch.cat([students, target_query.detach().to(query.dtype)])  # (r d), r = vn + n
    temperatures = torch.cat(
        [
            _per_row(temperature, students, "temperature"),
            _per_row(target_temperature, rows[split:], "target_temperature").detach(),
        ]
    )  # (r)
    lse_rows, expectation_rows = _attention(rows, len(target_query), columns, temperatures, backend)  # (r), (r d)
    lse, target_lse = lse_rows[:split].view(query.shape[:-1]), lse_rows[split:].detach()  # (v n), (n)
    has_no_column = lse == -torch.inf  # (v n)
    margin = _logit(query, positive, temperature) - lse  # (v n)
    relational = lse - _logit(query, expectation_rows[split:], temperature)  # (v n)
    return SoftTargetTerms(
        contrastive=-F.logsigmoid(margin),
        relational=relational.masked_fill(has_no_column, 0.0),
        ceiling=-F.logsigmoid(-margin).masked_fill(has_no_column, 0.0),
        self_prob=torch.sigmoid(-target_lse),
    )


def soft_target_cross_entropy(
    query: Float[Tensor, "n d"] | Float[Tensor, "v n d"],
    positive: Float[Tensor, "n d"],
    target_query: Float[Tensor, "n d"],
    columns: Float[Tensor, "k d"] | Columns,
    *,
    temperature: float | Float[Tensor, ""],
    target_temperature: float | Float[Tensor, ""],
    coefficient: float | Float[Tensor, ""],
    self_similarity: str = "mask",
    backend: str | None = None,
) -> Float[Tensor, " n"] | Float[Tensor, "v n"]:
    """Cross-entropy of the student's softmax with a target that is partly one-hot, partly soft.

    L_i = -sum_k w_ik log p_ik, p = softmax over [k+_i | columns] of q_i.k / tau,
    w_i = lambda onehot(k+_i) + (1 - lambda) softmax over the columns of t_i.k_j / tau_m.
    Paper: Denize et al., 2023, eq. (6) to (8), 2111.14585.  lambda = coefficient, tau = temperature,
    tau_m = target_temperature, t = target_query.
    With no column the target is the one-hot and the loss 0.

    Args:
        query: (n d), or (v n d) for v views of each image that share one target, l2-normalized; gradient flows.
        positive: (n d) l2-normalized, no gradient.
        target_query: (n d) l2-normalized, no gradient.
        columns: keys that the queries are compared with; a (k d) tensor is a queue alone.
        temperature: tau, divisor of the query's similarities, > 0.
        target_temperature: tau_m, divisor of the target query's similarities, > 0.
        coefficient: lambda, weight of the one-hot in the target, in [0, 1].
        self_similarity: the positive in the target's softmax: "mask" keeps it out, as in the paper; "zero" gives it
            the similarity 0, as in the authors' code.
        backend: implementation of ``queue_attention``; None lets it choose.

    Returns:
        (n) or (v n) loss per row, nats; at least the entropy of the target.

    Raises:
        ValueError: if sizes disagree, a temperature is <= 0, or ``self_similarity`` is another word.

    Example:
        >>> query, queue = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> temperatures = {"temperature": 0.5, "target_temperature": 0.5}
        >>> soft_target_cross_entropy(query, query, query, queue, coefficient=0.75, **temperatures)
        tensor([0.6269])
    """
    if self_similarity not in ("mask", "zero"):
        raise ValueError(f"self_similarity must be 'mask' or 'zero', got {self_similarity!r}")
    if not isinstance(coefficient, Tensor) and not 0 <= coefficient <= 1:
        raise ValueError(f"coefficient must be in [0, 1], got {coefficient}")
    terms = soft_target_terms(
        query,
        positive,
        target_query,
        columns,
        temperature=temperature,
        target_temperature=target_temperature,
        backend=backend,
    )
    # The positive's share of the target, by the one-hot and by the target's softmax.
    share: float | Tensor = coefficient
    if self_similarity == "zero":
        share = coefficient + (1 - coefficient) * terms.self_prob
    return share * terms.contrastive + (1 - share) * (terms.relational + terms.ceiling)


class KeySoftmax(NamedTuple):
    """A query's softmax over its positive and the columns, as three numbers; (v n) for v sets of queries.

    Attributes:
        lse: log-sum-exp of the logits, nats; gradient flows to the query.
        expectation: (v n d) mean of the keys under the softmax; a constant, except with ``backend="reference"``.
        log_prob: log-probability of the positive, nats; gradient flows to the query.
    """

    lse: Tensor
    expectation: Tensor
    log_prob: Tensor


def key_softmax(
    query: Float[Tensor, "v n d"],
    positive: Float[Tensor, "n d"],
    columns: Float[Tensor, "k d"] | Columns,
    temperatures: Sequence[float | Float[Tensor, ""]],
    *,
    backend: str | None = None,
) -> KeySoftmax:
    """The softmax of each query over its positive and all columns, from one pass over the columns.

    p_i = softmax over [k+_i | columns] of q_i.k / tau: -log p_ii is InfoNCE, and against a target with expectation E^w
    over the same keys the cross-entropy is lse_i - q_i.E^w_i / tau.
    With no column the positive has all the mass.

    Args:
        query: (v n d) for v sets of queries that share positives, l2-normalized; gradient flows.
        positive: (n d) l2-normalized, no gradient.
        columns: keys that the queries are compared with; a (k d) tensor is a queue alone.
        temperatures: divisor of the similarities of each of the v sets, > 0.
        backend: implementation of ``queue_attention``; None lets it choose.

    Returns:
        Lse, expectation and log-probability of the positive.

    Raises:
        ValueError: if sizes disagree, a temperature is <= 0, or there are not v.

    Example:
        >>> query, queue = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> softmax = key_softmax(query[None], query, queue, [0.5])
        >>> softmax.log_prob, softmax.expectation  # softmax of (2, 0)
        (tensor([[-0.1269]]), tensor([[[0.8808, 0.1192]]]))
    """
    query = at_least_float32(query)
    if len(temperatures) != len(query):
        raise ValueError(f"temperatures must hold one number for each of {len(query)} sets, got {len(temperatures)}")
    temperature = torch.stack([_per_row(value, query[0], "temperature") for value in temperatures])  # (v n)
    lse_rows, expectation_rows = _attention(query.flatten(0, 1), len(positive), columns, temperature.flatten(), backend)
    lse, expectation = lse_rows.view(query.shape[:2]), expectation_rows.view(query.shape)  # (v n), (v n d)
    logit = _logit(query, positive, temperature)  # (v n)
    margin = logit - lse  # (v n)
    expectation = expectation.lerp(positive.detach().to(expectation.dtype), margin.sigmoid()[..., None])
    return KeySoftmax(
        lse=torch.logaddexp(lse, logit),
        # Other back-ends would leave out the gradient of the columns' part.
        expectation=expectation if backend == "reference" else expectation.detach(),
        log_prob=F.logsigmoid(margin),
    )


def _attention(
    rows: Tensor, num_queries: int, columns: Tensor | Columns, temperature: float | Tensor, backend: str | None
) -> tuple[Tensor, Tensor]:
    """Lse (r) and expectation (r d) of stacked sets of queries (r d) over the queue and the batch's other keys."""
    keys, length, batch_keys, row_offset, is_sharded = Columns(columns) if isinstance(columns, Tensor) else columns
    attention = _attention_over_shards if is_sharded and distributed.world_size() > 1 else queue_attention
    lse, expectation = attention(
        rows, keys.detach(), temperature, length=length, normalized=True, backend=backend
    )  # (r), (r d)
    if batch_keys is None:
        return lse, expectation
    if not 0 <= row_offset <= len(batch_keys) - num_queries:
        raise ValueError(
            f"batch_keys has {len(batch_keys)} rows, which must include the own {num_queries} "
            f"from row_offset={row_offset} on"
        )
    own = row_offset + torch.arange(len(rows), device=rows.device) % num_queries  # (r)
    batch_lse, batch_expectation = queue_attention(
        rows, batch_keys.detach(), temperature, exclude=own, normalized=True, backend=backend
    )  # (r), (r d)
    return _merge(torch.stack([lse, batch_lse]), torch.stack([expectation, batch_expectation]))


def _attention_over_shards(
    rows: Tensor, shard: Tensor, temperature: float | Tensor, *, backend: str | None, **options: Any
) -> tuple[Tensor, Tensor]:
    """Lse (r) and expectation (r d) of this process's queries over the shards of all W processes.

    Queries move and keys stay: each process looks at its shard for the queries of all, and sends the parts back:
    lse = log sum_w exp(lse_w), E = sum_w exp(lse_w - lse) E_w. The gradient needs no message.
    """
    rows = at_least_float32(rows)
    temperature = _per_row(temperature, rows, "temperature")  # (r)
    query = torch.cat([rows, temperature[:, None]], dim=1)  # (r d+1), in one message
    is_reference = backend == "reference"  # whose expectation has a gradient as well
    gathered = distributed.gather_with_grad(query) if is_reference else distributed.gather(query)  # (Wr d+1)
    lse, expectation = queue_attention(gathered[:, :-1], shard, gathered[:, -1], backend=backend, **options)
    parts = distributed.exchange(torch.cat([lse[:, None], expectation], dim=1))  # (Wr d+1)
    parts = parts.view(distributed.world_size(), *query.shape)  # (W r d+1)
    lse, expectation = _merge(parts[..., 0], parts[..., 1:])
    return lse if is_reference else with_gradient(lse, expectation, rows, 1 / temperature), expectation


def _merge(lse_sn: Tensor, expectation_snd: Tensor) -> tuple[Tensor, Tensor]:
    """Lse (n) and expectation (n d) over s segments of columns, from those of each."""
    # Segments that are all empty have neither weights nor a gradient: such rows use zeros and are replaced.
    is_empty_n = (lse_sn == -torch.inf).all(dim=0)
    safe_sn = lse_sn.masked_fill(is_empty_n, 0.0)
    expectation_nd = (safe_sn.softmax(dim=0)[:, :, None] * expectation_snd).sum(dim=0)
    return safe_sn.logsumexp(dim=0).masked_fill(is_empty_n, -torch.inf), expectation_nd


def _logit(query: Tensor, key: Tensor, temperature: float | Tensor) -> Tensor:
    """Similarity of each query and its own key, (n) or (v n), divided by temperature; no gradient to the key."""
    return (at_least_float32(query) * at_least_float32(key.detach())).sum(dim=-1) / temperature


def _per_row(temperature: float | Tensor, query: Tensor, name: str) -> Tensor:
    """The temperature of each query, (n)."""
    if isinstance(temperature, Tensor):
        return temperature.to(query.dtype).expand(len(query))
    if not temperature > 0:
        raise ValueError(f"{name} must be > 0, got {temperature}")
    return query.new_full((len(query),), temperature)
