"""BatchNorm over part of a batch (many devices on one) or over many processes (one device over many)."""

import copy
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_core import distributed

_Module = TypeVar("_Module", bound=nn.Module)
_Norm = TypeVar("_Norm", bound=_BatchNorm)


class SplitBatchNorm(_BatchNorm):
    """BatchNorm as several devices would do it: each contiguous part of the batch by its own statistics.

    Running statistics are the mean over the parts. In evaluation it is plain BatchNorm, and its state has BatchNorm's
    keys. Together with a permutation of the batch it is MoCo's shuffle-BN on one device.
    Source: MoCo's CIFAR-10 notebook, which interleaves the parts; in random order that is the same.

    Args:
        num_features: number of channels.
        num_splits: number of parts, all of equal size.
        eps: number added to the variance.
        momentum: weight of the new statistics in the running ones.
        affine: whether the layer has scale and shift.
    """

    def __init__(
        self,
        num_features: int,
        num_splits: int,
        *,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine)
        self.num_splits = num_splits

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions after (n c) will do."""

    def forward(self, input: Float[Tensor, "n c ..."]) -> Float[Tensor, "n c ..."]:
        """Normalize each part of the batch.

        Raises:
            ValueError: in training, if the batch is not a multiple of ``num_splits``.
        """
        if not self.training:
            return super().forward(input)
        if len(input) % self.num_splits:
            raise ValueError(
                f"a batch of {len(input)} cannot be split into {self.num_splits} equal parts for BatchNorm"
            )
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        means, variances = (
            self.running_mean.repeat(self.num_splits, 1),
            self.running_var.repeat(self.num_splits, 1),
        )
        # One kernel for each part and one to join them, on contiguous memory in either layout. Folding the
        # parts into the channels needs a copy before and after, and took longer on CPU, most of all in
        # channels_last.
        output = torch.cat(
            [
                F.batch_norm(part, mean, variance, self.weight, self.bias, True, self.momentum, self.eps)
                for part, mean, variance in zip(input.chunk(self.num_splits), means, variances, strict=True)
            ]
        )
        self.running_mean.copy_(means.mean(0))
        self.running_var.copy_(variances.mean(0))
        self.num_batches_tracked.add_(1)
        return output

    def extra_repr(self) -> str:
        """BatchNorm's arguments and the number of parts, for ``print``."""
        return f"{super().extra_repr()}, num_splits={self.num_splits}"  # type: ignore[no-untyped-call]  # torch's is untyped


def split_batch_norm(
    module: _Module, num_splits: int, *, kinds: tuple[type[nn.Module], ...] = (nn.BatchNorm2d,)
) -> _Module:
    """Make the BatchNorm layers inside a module normalize contiguous parts of the batch, in place.

    Parameters and buffers stay the same tensors under the same names. With ``num_splits`` 1 nothing changes.

    Args:
        module: module around the layers; not such a layer itself.
        num_splits: number of parts of the batch, >= 1.
        kinds: classes to convert; the default leaves the BatchNorm1d of a projector as it is.

    Returns:
        The module.

    Raises:
        ValueError: if ``num_splits`` < 1, if there is no layer to convert, or if one cannot be converted.
    """
    if num_splits < 1:
        raise ValueError(f"num_splits must be at least 1, got {num_splits}")
    if num_splits == 1:
        return module
    layers = _layers(module, kinds)
    if not layers:
        missing = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{type(module).__name__} has no {missing} to split; use momentum.batch_norm_splits 1")
    for parent, name, layer in layers:
        _check_plain(layer, kinds, "split", "use momentum.batch_norm_splits 1")
        setattr(parent, name, _like(SplitBatchNorm(layer.num_features, num_splits, **_arguments(layer)), layer))
    return module


def _layers(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> list[tuple[nn.Module, str, Any]]:
    """The layers of these classes inside a module, each with its parent and its name there."""
    return [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if isinstance(child, kinds)
    ]


def _check_plain(layer: _BatchNorm, kinds: tuple[type[nn.Module], ...], verb: str, remedy: str) -> None:
    # A subclass may do more than normalize: timm's BatchNormAct2d also activates.
    if type(layer) not in kinds:
        names = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"cannot {verb} {type(layer).__name__}, only {names}; {remedy}")
    if layer.momentum is None or not layer.track_running_stats:
        raise ValueError(f"cannot {verb} {layer}: it needs a momentum and running statistics")


def _arguments(layer: _BatchNorm) -> dict[str, Any]:
    return {"eps": layer.eps, "momentum": layer.momentum, "affine": layer.affine}


def _like(new: _Norm, layer: _BatchNorm) -> _Norm:
    """A new layer with the parameters and buffers of another."""
    new.weight, new.bias = layer.weight, layer.bias
    new.running_mean, new.running_var = layer.running_mean, layer.running_var
    new.num_batches_tracked = layer.num_batches_tracked
    return new.train(layer.training)


class GatheredBatchNorm(_BatchNorm):
    """BatchNorm over the batch of all processes, for devices on which PyTorch's SyncBatchNorm does not exist.

    Processes may hold different numbers of images of different sizes. With n_r values of a channel in process r, their
    mean m_r and variance v_r, and N = sum n_r: mean = sum n_r m_r / N, variance = sum n_r (v_r + (m_r - mean)^2) / N.
    The gradient of a statistic is the sum over all processes. Statistics are float32, or wider where the input is.

    Args:
        num_features: number of channels.
        eps: number added to the variance.
        momentum: weight of the new statistics in the running ones.
        affine: whether the layer has scale and shift.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions after (n c) will do."""

    def forward(self, input: Float[Tensor, "n c ..."]) -> Float[Tensor, "n c ..."]:
        """Normalize by the statistics of all processes; in evaluation by the running ones."""
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        dtype = torch.promote_types(input.dtype, torch.float32)
        values, shape = input.to(dtype), (1, -1, *[1] * (input.ndim - 2))
        dims = [dim for dim in range(input.ndim) if dim != 1]
        own_var, own_mean = torch.var_mean(values, dims, correction=0)
        own_count = torch.full_like(own_mean, values.numel() / len(own_mean))
        statistics = distributed.gather_with_grad(torch.stack([own_mean, own_var, own_count])[None])
        means, variances, counts = statistics.unbind(1)
        count = counts.sum(0)
        mean = (counts * means).sum(0) / count
        variance = (counts * (variances + (means - mean) ** 2)).sum(0) / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            # Without a momentum they are the mean over all batches, as of PyTorch's.
            weight = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean.to(self.running_mean), weight)
            self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var), weight)
        scale = (variance + self.eps).rsqrt()
        shift = -mean * scale
        if self.affine:
            scale, shift = scale * self.weight, shift * self.weight + self.bias
        output: Tensor = values * scale.view(shape) + shift.view(shape)
        return output.to(input.dtype)


def depends_on_processes(module: nn.Module) -> bool:
    """Whether the number of processes changes a module's training, whose batch stays the same.

    It does by BatchNorm, whose statistics are of a process's share of the batch, or of a part of that; whether the
    shares are shuffled does not matter. Those of :func:`sync_batch_norm` are of the whole batch.
    """
    of_all = (nn.SyncBatchNorm, GatheredBatchNorm)
    return any(isinstance(layer, _BatchNorm) and not isinstance(layer, of_all) for layer in module.modules())


def with_first_statistics(module: _Module) -> _Module:
    """A module with the first process's buffers, which BatchNorm's running statistics are; all processes call it.

    In one process it is the module itself, in several a copy: the module's own statistics belong to its process.
    """
    if distributed.world_size() == 1:
        return module
    same = copy.deepcopy(module)
    for buffer in same.buffers():
        distributed.broadcast_(buffer)
    return same


def sync_batch_norm(module: _Module, device: torch.device) -> _Module:
    """Make the BatchNorm layers of a module take their statistics over all processes.

    On CUDA they are PyTorch's SyncBatchNorm; several processes on a CPU, where that does not exist, have
    :class:`GatheredBatchNorm`. It does not replace shuffle-BN with a queue: queued keys carry the statistics of another
    step's batch (facebookresearch/moco issue 46).

    Args:
        module: module around the layers; not such a layer itself.
        device: device that the module will train on.

    Returns:
        The module with such layers; state keys and values stay the same.

    Raises:
        ValueError: if the module has split BatchNorm or, with several processes on a CPU, a layer that does more.
    """
    if any(isinstance(layer, SplitBatchNorm) for layer in module.modules()):
        raise ValueError("BatchNorm is either split or synchronized: switch one of the two off")
    if device.type == "cpu" and distributed.world_size() > 1:
        kinds = (nn.BatchNorm1d, nn.BatchNorm2d)
        for parent, name, layer in _layers(module, kinds):
            _check_plain(layer, kinds, "synchronize", "train this network on CUDA, or switch sync_batch_norm off")
            setattr(parent, name, _like(GatheredBatchNorm(layer.num_features, **_arguments(layer)), layer))
        return module
    from timm.layers.norm_act import convert_sync_batchnorm  # importing timm takes seconds

    # timm's, because torch's drops the activation inside timm's BatchNormAct2d.
    converted: _Module = convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]  # torch's is untyped
    return converted
