"""Past keys in a ring buffer, first in first out: row cursor + i (mod k) of the queue becomes key i."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from ssl_core.ops import _triton, cpp, cuda
from ssl_core.ops.backends import Unsupported, choose_backend, log_choice, runs_anywhere

# Fastest first; dtypes are those of keys and queue.
BACKENDS: dict[str, Unsupported] = {
    "cpp": cpp.unsupported,
    "triton": _triton.unsupported,
    "cuda": cuda.unsupported,
    "reference": runs_anywhere,
}


def enqueue_(
    queue: Float[Tensor, "k d"],
    keys: Float[Tensor, "n d"],
    cursor: Int64[Tensor, ""],
    length: Int64[Tensor, ""],
) -> None:
    """Write l2-normalized keys over the oldest rows of the queue, and move cursor and length, in place.

    The result is that of inserting the keys one by one, for any batch size: the write wraps past the end, and
    of a batch larger than the queue the last k keys remain. Keys are normalized in float32 (float64 for
    float64 keys) and then rounded to the queue's dtype. Nothing is read by the host; there is no gradient.

    Args:
        queue: (k d) past keys, floating, k >= 1; changed.
        keys: (n d) new keys, normalized here; a zero key stays zero.
        cursor: next row to write, in [0, k), 0-dim int64 on the queue's device; changed.
        length: number of rows filled so far, in [0, k], 0-dim int64 on the queue's device; changed.

    Raises:
        ValueError: if dimensions or devices disagree, the queue has no rows, or cursor or length are not 0-dim int64.

    Example:
        >>> queue, cursor, length = torch.zeros(3, 2), torch.tensor(2), torch.tensor(0)
        >>> enqueue_(queue, torch.tensor([[2.0, 0.0], [0.0, 5.0]]), cursor, length)
        >>> queue.tolist(), int(cursor), int(length)
        ([[0.0, 1.0], [0.0, 0.0], [1.0, 0.0]], 1, 2)
    """
    if keys.shape[1] != queue.shape[1]:
        raise ValueError(f"keys have dimension {keys.shape[1]}, the queue has {queue.shape[1]}")
    if len(queue) == 0:
        raise ValueError("the queue has no rows to write to")
    for name, tensor in {"cursor": cursor, "length": length}.items():
        if tensor.dtype != torch.int64 or tensor.ndim != 0:
            raise ValueError(f"{name} must be 0-dim int64, got {tuple(tensor.shape)} {tensor.dtype}")
    for name, tensor in {"keys": keys, "cursor": cursor, "length": length}.items():
        if tensor.device != queue.device:
            raise ValueError(f"{name} is on {tensor.device}, the queue on {queue.device}")
    torch.ops.ssl_core.enqueue_(queue, keys.detach(), cursor, length)


torch.library.define(
    "ssl_core::enqueue_", "(Tensor(a!) queue, Tensor keys, Tensor(b!) cursor, Tensor(c!) length) -> ()"
)


@torch.library.impl("ssl_core::enqueue_", "CompositeExplicitAutograd")
def _enqueue_(queue: Tensor, keys: Tensor, cursor: Tensor, length: Tensor) -> None:
    name = choose_backend("enqueue_", BACKENDS, queue.device, keys.dtype, queue.dtype)
    log_choice("enqueue_", tuple(BACKENDS.items()), name, queue.device, keys.dtype, queue.dtype)
    if name == "cpp":
        cpp.enqueue(queue, keys, cursor, length)
    elif name == "triton":
        from ssl_core.ops._triton.enqueue import enqueue

        enqueue(queue, keys, cursor, length)
    elif name == "cuda":
        cuda.enqueue(queue, keys, cursor, length)
    else:
        _reference(queue, keys, cursor, length)


def _reference(queue: Tensor, keys: Tensor, cursor: Tensor, length: Tensor) -> None:
    num_rows, num_keys = len(queue), len(keys)
    dtype = torch.float64 if keys.dtype == torch.float64 else torch.float32
    kept = F.normalize(keys[-num_rows:].to(dtype), dim=1).to(queue.dtype)
    first = cursor + (num_keys - len(kept))
    rows = (first + torch.arange(len(kept), device=queue.device)) % num_rows
    queue.index_copy_(0, rows, kept)
    cursor.add_(num_keys).remainder_(num_rows)
    length.add_(num_keys).clamp_(max=num_rows)


def _fake(queue: Tensor, keys: Tensor, cursor: Tensor, length: Tensor) -> None:
    return None


torch.library.register_fake("ssl_core::enqueue_", _fake)
