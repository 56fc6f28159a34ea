"""A query's softmax over the queue, as a scalar and a vector from which every queue loss and its gradient follow.

For a query q, queue rows k_j, temperature tau and an optional bias b_j, in nats:

    s_j = q.k_j / tau + b_j     p = softmax(s)     lse = log sum_j exp(s_j)     E = sum_j p_j k_j
    d lse / dq = E / tau        d lse / d(1/tau) = q.E

The queue is constant, so (lse, E) is the whole forward and the whole gradient: backward recomputes nothing.
"""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ssl_core.ops import _triton, cpp, cuda, sdpa
from ssl_core.ops.backends import Unsupported, choose_backend, log_choice, runs_anywhere

# The first that can run is taken: fastest first, but for sdpa. On the CPU it is up to 10 % faster than tiled, in a
# quarter of the memory, but it calls functions of PyTorch that are not public, and on CUDA it rounds E to halves.
BACKENDS: dict[str, Unsupported] = {
    "cpp": cpp.unsupported,
    "triton": _triton.unsupported,
    "cuda": cuda.unsupported,
    "tiled": runs_anywhere,
    "sdpa": sdpa.unsupported,
    "reference": runs_anywhere,
}

# 4 MiB of float32 scores. From 1 to 8 MiB times differ by less than 10 % on two idle AVX-512 cores; larger tiles lose
# the cache, smaller ones meet more thread barriers, each of which costs a time slice on a busy machine.
_TILE_ELEMENTS = 2**20
# Rows of a tile; a wider batch is cut, so that tiles keep enough columns for an efficient product.
_TILE_ROWS = 1024


def queue_attention(
    query: Float[Tensor, "n d"],
    queue: Float[Tensor, "k d"],
    temperature: float | Float[Tensor, ""] | Float[Tensor, " n"],
    *,
    length: int | Int64[Tensor, ""] | None = None,
    exclude: Int64[Tensor, " n"] | None = None,
    key_bias: Float[Tensor, " k"] | None = None,
    normalized: bool = False,
    backend: str | None = None,
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n d"]]:
    """Log-sum-exp of each query's logits over the queue, and the softmax-weighted mean of the queue's rows.

    s_j = query.queue_j / temperature + key_bias_j
    lse = log sum_j exp(s_j), expectation = sum_j softmax(s)_j queue_j

    Products, sums and outputs are float32 (float64 if an input is), whatever autocast says; on CUDA the
    products are tf32 where PyTorch's own may be. Where no column is left, lse is -inf and the expectation 0.
    Gradient flows from lse to ``query`` and to ``temperature``, not twice; the expectation is a constant.
    ``backend="reference"`` differentiates both outputs to all inputs, any number of times, in n k memory.

    Args:
        query: (n d), floating; gradient flows.
        queue: (k d), floating, k may be 0; no gradient.
        temperature: divisor of the similarities, > 0; one for all rows or (n). A tensor's sign is not checked (device
            sync).
        length: number of the queue's rows that count, its first ones; all by default. A 0-dim tensor is not read by
            the host.
        exclude: (n) index of one column that the row does not see, -1 for none.
        key_bias: (k) number added to the logits of each column, nats; -inf hides it.
        normalized: promise that rows of query and queue have unit length, which lets a back-end do without
            the running maximum (``cpp`` does, at temperatures from 0.023 on); if it is broken, so is the result.
        backend: name of a back-end; by default SSL_CORE_BACKEND, else the first of these that can run: "cpp" (csrc/cpu,
            on the CPU); "triton" (on CUDA, d up to 512); "cuda" (csrc/cuda, a bfloat16 queue of d 64, 128 or 256);
            "tiled" (plain PyTorch that never holds n k numbers); "sdpa" (PyTorch's attention, no ``exclude``);
            "reference". "triton" and "cuda" round the query to the queue's dtype, in which the products run.

    Returns:
        Lse (n) in nats, and expectation (n d).

    Raises:
        ValueError: if sizes or devices disagree, temperature <= 0, length is outside [0, k], the back-end
            cannot run here, or the queue or the bias requires a gradient that the back-end does not give.

    Example:
        >>> query, queue = torch.tensor([[1.0, 0.0]]), torch.eye(2)
        >>> lse, expectation = queue_attention(query, queue, 0.5)
        >>> lse, expectation  # log(e^2 + e^0), softmax of (2, 0)
        (tensor([2.1269]), tensor([[0.8808, 0.1192]]))
    """
    num_rows, dim = query.shape
    num_keys = len(queue)
    if queue.shape[1] != dim:
        raise ValueError(f"query has dimension {dim}, queue has {queue.shape[1]}")
    if isinstance(temperature, Tensor):
        if temperature.shape not in ((), (num_rows,)):
            raise ValueError(f"temperature must be one number or ({num_rows}), got {tuple(temperature.shape)}")
    elif not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    if exclude is not None and exclude.shape != (num_rows,):
        raise ValueError(f"exclude must be ({num_rows}), one column per query, got {tuple(exclude.shape)}")
    if key_bias is not None and key_bias.shape != (num_keys,):
        raise ValueError(f"key_bias must be ({num_keys}), one per queue row, got {tuple(key_bias.shape)}")
    tensors = {"queue": queue, "exclude": exclude, "key_bias": key_bias, "length": length, "temperature": temperature}
    for argument, value in tensors.items():
        if isinstance(value, Tensor) and value.device != query.device:
            raise ValueError(f"{argument} is on {value.device}, query on {query.device}")
    if isinstance(length, int):
        if not 0 <= length <= num_keys:
            raise ValueError(f"length must be in [0, {num_keys}], the rows of the queue, got {length}")
        queue, key_bias, length = queue[:length], None if key_bias is None else key_bias[:length], None

    problem = {"dim": dim, "exclude": exclude is not None}
    name = choose_backend(
        "queue_attention", BACKENDS, query.device, query.dtype, queue.dtype, requested=backend, **problem
    )
    if name == "reference":
        return queue_attention_reference(query, queue, temperature, length=length, exclude=exclude, key_bias=key_bias)
    for argument, tensor in {"queue": queue, "key_bias": key_bias}.items():
        if torch.is_grad_enabled() and tensor is not None and tensor.requires_grad:
            raise ValueError(
                f"{argument} requires a gradient, which back-end {name!r} does not give: "
                f"detach it, or use backend='reference'"
            )
    inverse_temperature = 1 / _per_row(temperature, query, queue)
    with torch.no_grad():
        lse, expectation = torch.ops.ssl_core.queue_attention(
            query, queue, inverse_temperature, length, exclude, key_bias, normalized, name
        )
    return with_gradient(lse, expectation, query, inverse_temperature), expectation


def with_gradient(
    lse: Float[Tensor, " n"],
    expectation: Float[Tensor, "n d"],
    query: Float[Tensor, "n d"],
    inverse_temperature: Float[Tensor, " n"],
) -> Float[Tensor, " n"]:
    """The log-sum-exp of each query with its gradient, which follows from the expectation.

    d lse / dq = E / tau, d lse / d(1/tau) = q.E: once, since the expectation is taken for a constant. So it can have
    been merged from parts of the queue that were looked at elsewhere.

    Args:
        lse: (n) log-sum-exp of each query's logits, nats.
        expectation: (n d) mean of the keys under each query's softmax.
        query: (n d) queries; gradient flows.
        inverse_temperature: (n) 1 / tau, in the dtype of ``lse``; gradient flows.
    """
    result: Tensor = _LogSumExp.apply(lse, expectation, query, inverse_temperature)
    return result


def queue_attention_reference(
    query: Float[Tensor, "n d"],
    queue: Float[Tensor, "k d"],
    temperature: float | Float[Tensor, ""] | Float[Tensor, " n"],
    *,
    length: int | Int64[Tensor, ""] | None = None,
    exclude: Int64[Tensor, " n"] | None = None,
    key_bias: Float[Tensor, " k"] | None = None,
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n d"]]:
    """The specification of :func:`queue_attention`: dense, differentiable in everything, any number of times.

    Args:
        query: (n d) queries.
        queue: (k d) past keys.
        temperature: divisor of the similarities, > 0; one number or (n).
        length: number of the queue's rows that count, its first ones.
        exclude: (n) hidden column of each row, -1 for none.
        key_bias: (k) number added to the logits of each column, nats.

    Returns:
        Lse (n) in nats, and expectation (n d).

    Example:
        >>> lse, expectation = queue_attention_reference(torch.ones(1, 2), torch.zeros(3, 2), 0.1, length=0)
        >>> lse, expectation
        (tensor([-inf]), tensor([[0., 0.]]))
    """
    with torch.autocast(query.device.type, enabled=False):
        temperature_n = _per_row(temperature, query, queue)
        query, queue = query.to(temperature_n.dtype), queue.to(temperature_n.dtype)
        logits_nk = query @ queue.T / temperature_n[:, None]
        hidden_nk = torch.zeros_like(logits_nk, dtype=torch.bool)
        columns_k = torch.arange(len(queue), device=queue.device)
        if key_bias is not None:
            logits_nk = logits_nk + key_bias.to(logits_nk.dtype)
            hidden_nk = hidden_nk | (key_bias == -torch.inf)
        if length is not None:
            hidden_nk = hidden_nk | (columns_k >= length)
        if exclude is not None:
            hidden_nk = hidden_nk | (columns_k == exclude[:, None])
        # A softmax over nothing is undefined, and so is its gradient: such rows use zeros and are replaced.
        empty_n1 = hidden_nk.all(dim=1, keepdim=True)
        logits_nk = logits_nk.masked_fill(hidden_nk, -torch.inf).masked_fill(empty_n1, 0.0)
        lse = logits_nk.logsumexp(dim=1).masked_fill(empty_n1[:, 0], -torch.inf)  # (n)
        expectation = (logits_nk.softmax(dim=1) @ queue).masked_fill(empty_n1, 0.0)  # (n d)
    return lse, expectation


def _per_row(temperature: float | Tensor, query: Tensor, queue: Tensor) -> Tensor:
    """The temperature as (n), in the dtype of products and sums: float64 if an input is, else float32."""
    is_double = torch.float64 in (query.dtype, queue.dtype)
    dtype = torch.float64 if is_double else torch.float32
    if isinstance(temperature, Tensor):
        return temperature.to(dtype).expand(len(query))
    return torch.full((len(query),), temperature, dtype=dtype, device=query.device)


# One op serves every opaque back-end: the name travels as an argument, and schema, fake, FLOP count and
# gradient are shared. inverse_temperature is (n) in the dtype of the outputs.
torch.library.define(
    "ssl_core::queue_attention",
    "(Tensor query, Tensor queue, Tensor inverse_temperature, Tensor? length, Tensor? exclude, "
    "Tensor? key_bias, bool normalized, str backend) -> (Tensor lse, Tensor expectation)",
)


@torch.library.impl("ssl_core::queue_attention", "CompositeExplicitAutograd")
def _run(
    query: Tensor,
    queue: Tensor,
    inverse_temperature: Tensor,
    length: Tensor | None,
    exclude: Tensor | None,
    key_bias: Tensor | None,
    normalized: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    log_choice("queue_attention", tuple(BACKENDS.items()), backend, query.device, query.dtype, queue.dtype)
    return _KERNELS[backend](query, queue, inverse_temperature, length, exclude, key_bias, normalized)


def _fake(query: Tensor, queue: Tensor, inverse_temperature: Tensor, *options: object) -> tuple[Tensor, Tensor]:
    dtype = inverse_temperature.dtype
    return query.new_empty(query.shape[0], dtype=dtype), query.new_empty(query.shape, dtype=dtype)


torch.library.register_fake("ssl_core::queue_attention", _fake)


@register_flop_formula(torch.ops.ssl_core.queue_attention)
def _flop(query_shape: Any, queue_shape: Any, *options: object, **keywords: object) -> int:
    """Two products of 2 n k d each; exponentials are not counted, as elsewhere in torch."""
    num_rows, dim = query_shape
    return int(4 * num_rows * queue_shape[0] * dim)


class _LogSumExp(torch.autograd.Function):
    """Gradient of lse; outside the op, so that the op stays a plain function without gradient."""

    @staticmethod
    def forward(ctx: Any, lse: Tensor, expectation: Tensor, query: Tensor, inverse_temperature: Tensor) -> Tensor:
        ctx.save_for_backward(query, inverse_temperature, expectation)
        return lse.view_as(lse)

    @staticmethod
    def backward(ctx: Any, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
        # Gradients are on in a backward only under create_graph=True (and while Dynamo traces it).
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError("this back-end has no second derivative: use backend='reference' with create_graph=True")
        query, inverse_temperature, expectation = ctx.saved_tensors
        grad_query = grad_inverse_temperature = None
        if ctx.needs_input_grad[2]:
            grad_query = ((grad_lse * inverse_temperature)[:, None] * expectation).to(query.dtype)  # (n d)
        if ctx.needs_input_grad[3]:
            grad_inverse_temperature = grad_lse * (query * expectation).sum(dim=1)  # (n)
        return None, None, grad_query, grad_inverse_temperature


def _tiled(
    query: Tensor,
    queue: Tensor,
    inverse_temperature: Tensor,
    length: Tensor | None,
    exclude: Tensor | None,
    key_bias: Tensor | None,
    normalized: bool,
) -> tuple[Tensor, Tensor]:
    """Plain PyTorch over tiles of scores with a running maximum; extra memory is one tile and O(n d)."""
    num_rows, dim = query.shape
    dtype = inverse_temperature.dtype
    scaled_query = query.to(dtype) * inverse_temperature[:, None]  # (n d)
    bias_k = _column_bias(len(queue), length, key_bias, dtype)
    lse = query.new_empty(num_rows, dtype=dtype)  # (n)
    expectation = query.new_empty(num_rows, dim, dtype=dtype)  # (n d)
    tile_rows = min(num_rows, _TILE_ROWS)
    # Also bounds the float32 copy of a tile of a half-precision queue.
    tile_columns = max(1, min(len(queue), _TILE_ELEMENTS // max(tile_rows, dim, 1)))
    scores = query.new_empty(tile_rows * tile_columns, dtype=dtype)  # a tile, flat
    for first in range(0, num_rows, _TILE_ROWS):
        rows = slice(first, first + _TILE_ROWS)
        exclude_n = None if exclude is None else exclude[rows]
        lse[rows], expectation[rows] = _tiled_rows(scaled_query[rows], queue, bias_k, exclude_n, scores, tile_columns)
    return lse, expectation


def _run_triton(*arguments: Any) -> tuple[Tensor, Tensor]:
    from ssl_core.ops._triton.queue_attention import queue_attention as run

    return run(*arguments)


# Back-ends behind the op; the running maximum costs `tiled` 3 %, so it has no use for `normalized`.
_KERNELS = {
    "cpp": cpp.queue_attention,
    "triton": _run_triton,
    "cuda": cuda.queue_attention,
    "tiled": _tiled,
    "sdpa": sdpa.queue_attention,
}


def _tiled_rows(
    scaled_query: Tensor,
    queue: Tensor,
    bias_k: Tensor | None,
    exclude: Tensor | None,
    scores: Tensor,
    tile_columns: int,
) -> tuple[Tensor, Tensor]:
    """Lse (n) and expectation (n d) of the rows of one row of tiles; ``scores`` is the workspace of a tile (n t)."""
    num_rows, dim = scaled_query.shape
    # The smallest finite number and not -inf: differences stay defined while a row has seen no column.
    maximum_n1 = scaled_query.new_full((num_rows, 1), torch.finfo(scaled_query.dtype).min)
    sum_n1 = scaled_query.new_zeros(num_rows, 1)
    weighted_sum_nd = scaled_query.new_zeros(num_rows, dim)
    for first in range(0, len(queue), tile_columns):
        tile = queue[first : first + tile_columns].to(scaled_query.dtype)  # (t d)
        score = scores[: num_rows * len(tile)].view(num_rows, len(tile))  # (n t)
        # Autocast, still on inside an op, leaves products alone that are in place or have out=.
        if bias_k is None:
            torch.mm(scaled_query, tile.T, out=score)
        else:
            torch.addmm(bias_k[first : first + len(tile)], scaled_query, tile.T, out=score)
        if exclude is not None:
            _hide_(score, (exclude - first)[:, None])
        previous_n1, maximum_n1 = maximum_n1, torch.maximum(maximum_n1, score.amax(dim=1, keepdim=True))
        rescale_n1 = (previous_n1 - maximum_n1).exp_()
        score.sub_(maximum_n1).exp_()
        sum_n1.mul_(rescale_n1).add_(score.sum(dim=1, keepdim=True))
        weighted_sum_nd.mul_(rescale_n1).addmm_(score, tile)
    # The sum of a row with any column is at least 1, the term of its maximum; the clamp only turns 0/0 into 0.
    weighted_sum_nd.div_(sum_n1.clamp_min(1.0))
    return sum_n1.log_().add_(maximum_n1)[:, 0], weighted_sum_nd


def _column_bias(num_keys: int, length: Tensor | None, key_bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The bias of each column with the columns beyond ``length`` at -inf, or None."""
    bias_k = None if key_bias is None else key_bias.to(dtype)
    if length is None:
        return bias_k
    if bias_k is None:
        bias_k = torch.zeros(num_keys, dtype=dtype, device=length.device)
    return bias_k.masked_fill(torch.arange(num_keys, device=length.device) >= length, -torch.inf)


def _hide_(score: Tensor, column_n1: Tensor) -> None:
    """Set one column of each row to -inf where it lies in this tile; no indices are read by the host."""
    last = score.shape[1] - 1
    is_inside = (column_n1 >= 0) & (column_n1 <= last)
    column_n1 = column_n1.clamp(0, last)
    score.scatter_(1, column_n1, score.gather(1, column_n1).masked_fill(is_inside, -torch.inf))
