"""Parameters of views: the random part of a view, as plain numbers, before any pixel is touched.

Each op takes a fixed number of uniform draws from the counter-based stream (seed; image, epoch, view), so a
view depends on nothing else: not on the batch, the number of workers, the rank layout, the device or what ran
before. Only operations that IEEE 754 rounds exactly (+ - * / sqrt floor round) turn draws into parameters, so
that every device agrees to the last bit.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from ssl_core.philox import uniform
from ssl_core.views.op import Framing, ViewOp
from ssl_core.views.spec import ViewSpec


def sample_parameters(
    spec: ViewSpec,
    *,
    seed: int,
    epoch: int,
    image_index: Int64[Tensor, " n"],
    view_index: int,
    image_size: Int64[Tensor, "n 2"],
) -> Float64[Tensor, "n p"]:
    """The parameters of one view of each image; the columns are named by `parameter_names`.

    One call for a batch costs about as much as one call for an image.

    Args:
        spec: view to sample for.
        seed: seed of the run, any 64-bit integer.
        epoch: number of the pass over the data, in [0, 2**32).
        image_index: (n) index of each image in its data set, in [0, 2**32).
        view_index: place of ``spec`` in the flat tuple of views, in [0, 2**32).
        image_size: (n 2) height and width of each image in pixels.

    Returns:
        (n p) parameters, on the device of ``image_index``.

    Example:
        >>> from ssl_core.views import GaussianBlur, RandomResizedCrop
        >>> spec = ViewSpec((RandomResizedCrop(), GaussianBlur(prob=1.0)), (32,))
        >>> index, size = torch.tensor([7, 8]), torch.tensor([[300, 400], [32, 32]])
        >>> parameters = sample_parameters(
        ...     spec, seed=0, epoch=0, image_index=index, view_index=0, image_size=size
        ... )
        >>> [row.round(decimals=2).tolist() for row in parameters]
        [[120.0, 115.0, 121.0, 118.0, 1.68], [7.0, 11.0, 19.0, 17.0, 0.98]]
    """
    num_draws = [op.num_draws for op in spec.ops]
    draws = _draws(seed, epoch, image_index, view_index, sum(num_draws))
    if spec.derived_from is not None:
        num_shared = sum(num_draws[: spec.shared_ops])
        draws[:, :num_shared] = _draws(seed, epoch, image_index, spec.derived_from, num_shared)
    return sample_ops(spec.ops, draws, image_size.double(), spec.sizes[0])


def _draws(
    seed: int, epoch: int, image_index: Int64[Tensor, " n"], view_index: int, num_draws: int
) -> Float64[Tensor, "n draws"]:
    streams = torch.stack(
        [image_index, torch.full_like(image_index, epoch), torch.full_like(image_index, view_index)], dim=1
    )
    return uniform(seed, streams, num_draws)


def sample_ops(
    ops: Sequence[ViewOp], draws: Float64[Tensor, "n draws"], size: Float64[Tensor, "n 2"], side: int
) -> Float64[Tensor, "n p"]:
    """The parameters of ops that follow one another; arguments as of `ViewOp.sample`."""
    columns = [draws[:, :0]]
    for op, op_draws in zip(ops, torch.split(draws, [op.num_draws for op in ops], dim=1), strict=True):
        columns.append(op.sample(op_draws, size, side))
        if isinstance(op, Framing):
            size = torch.full_like(size, op.side_after(side))
    return torch.cat(columns, dim=1)
