"""Back-end ``sdpa``: PyTorch's own attention with keys as values, which also returns lse.

``scaled_dot_product_attention`` keeps lse to itself, so the kernels behind it are called: flash attention on the CPU,
in float32, and for half precision on CUDA; memory-efficient attention for the rest on CUDA. On CUDA the query and the
expectation are rounded to the queue's dtype.
"""

import torch
from torch import Tensor

aten = torch.ops.aten


def unsupported(device: torch.device, *dtypes: torch.dtype, dim: int = 1, exclude: bool = False) -> str | None:
    """The reason why PyTorch's attention cannot do it."""
    if device.type not in ("cpu", "cuda"):
        return "it runs on the CPU and on CUDA devices"
    if not set(dtypes) <= {torch.float32, torch.float16, torch.bfloat16}:
        return "it computes in float32, float16 and bfloat16"
    if exclude:
        return "it cannot hide one column of each row"
    if device.type == "cuda" and (dim % 8 or dim > 256):
        return f"on CUDA its dimension is a multiple of 8 up to 256, got {dim}"
    return None


def queue_attention(
    query: Tensor,
    queue: Tensor,
    inverse_temperature: Tensor,
    length: Tensor | None,
    exclude: Tensor | None,
    key_bias: Tensor | None,
    normalized: bool,
) -> tuple[Tensor, Tensor]:
    """As ``ssl_core::queue_attention``, without ``exclude``."""
    num_rows, num_keys = len(query), len(queue)
    bias_k = None if key_bias is None else key_bias.float()
    if length is not None:
        bias_k = torch.zeros(num_keys, device=query.device) if bias_k is None else bias_k
        bias_k = bias_k.masked_fill(torch.arange(num_keys, device=query.device) >= length, -torch.inf)
    if num_rows == 0 or num_keys == 0:
        lse = torch.full((num_rows,), -torch.inf, device=query.device)
        return lse, torch.zeros(query.shape, device=query.device)
    # Temperatures differ between rows, so they go into the query.
    scaled = query.float() * inverse_temperature[:, None]
    with torch.autocast(query.device.type, enabled=False):
        attend = _attend_on_cpu if query.device.type == "cpu" else _attend_on_cuda
        lse, expectation = attend(scaled, queue, bias_k)
    # PyTorch's kernel makes 0 of a query that is not a number.
    poison_n = 0 * scaled.sum(dim=1)
    lse, expectation = lse + poison_n, expectation + poison_n[:, None]
    if bias_k is not None:  # a softmax over nothing is NaN, in all rows at once
        has_no_column = (bias_k == -torch.inf).all()
        lse = torch.where(has_no_column, -torch.inf, lse)
        expectation = torch.where(has_no_column, 0.0, expectation)
    return lse, expectation


def _attend_on_cpu(query: Tensor, queue: Tensor, bias_k: Tensor | None) -> tuple[Tensor, Tensor]:
    keys = queue.float()[None, None]
    mask = None if bias_k is None else bias_k.expand(1, 1, len(query), len(queue))
    expectation, lse = aten._scaled_dot_product_flash_attention_for_cpu(
        query[None, None], keys, keys, attn_mask=mask, scale=1.0
    )
    return lse[0, 0].clone(), expectation[0, 0].clone()


def _attend_on_cuda(query: Tensor, queue: Tensor, bias_k: Tensor | None) -> tuple[Tensor, Tensor]:
    rows, keys = query.to(queue.dtype)[None, None], queue[None, None]
    if bias_k is None and queue.dtype != torch.float32:
        expectation, lse, *_ = aten._scaled_dot_product_flash_attention(rows, keys, keys, scale=1.0)
    else:
        # Rows of the bias must start at multiples of 16 bytes.
        mask = None
        if bias_k is not None:
            padded = torch.nn.functional.pad(bias_k.to(queue.dtype), (0, -len(queue) % 16))
            mask = padded[: len(queue)].expand(1, 1, len(query), len(queue))
        expectation, lse, *_ = aten._scaled_dot_product_efficient_attention(
            rows, keys, keys, attn_bias=mask, compute_log_sumexp=True, scale=1.0
        )
    return lse[0, 0, : len(query)].float().clone(), expectation[0, 0].float().clone()
