"""Which implementation of an op runs: argument ``backend=``, then SSL_CORE_BACKEND, then the fastest that fits."""

import os
from collections.abc import Callable, Mapping

import torch

# Why a back-end cannot run for tensors on this device with this dtype; None when it can.
Unsupported = Callable[[torch.device, torch.dtype], str | None]


def runs_anywhere(device: torch.device, dtype: torch.dtype) -> None:
    """No reason against any device or dtype: the back-end is plain PyTorch."""


def choose_backend(
    op: str,
    backends: Mapping[str, Unsupported],
    device: torch.device,
    dtype: torch.dtype,
    requested: str | None = None,
) -> str:
    """The name of the back-end that the op uses on this device and dtype.

    Args:
        op: the op's name, for messages.
        backends: the op's back-ends, fastest first.
        device: where the op's tensors are.
        dtype: the query's dtype.
        requested: a name; None asks the environment variable SSL_CORE_BACKEND, and without it takes the first
            back-end that fits.

    Returns:
        A key of ``backends``.

    Raises:
        ValueError: if the requested back-end does not exist or cannot run here; nothing else is taken
            instead.

    Example:
        >>> choose_backend("op", {"tiled": runs_anywhere}, torch.device("cpu"), torch.float32)
        'tiled'
    """
    available = [name for name, unsupported in backends.items() if unsupported(device, dtype) is None]
    from_environment = os.environ.get("SSL_CORE_BACKEND") or None
    name = requested or from_environment
    if name is None:
        return available[0]
    if name in available:
        return name
    reason = backends[name](device, dtype) if name in backends else "there is no back-end of that name"
    origin = "backend" if requested else "SSL_CORE_BACKEND"
    raise ValueError(
        f"{origin}={name!r} cannot run {op} on {device.type} with {dtype}: {reason}; available: {', '.join(available)}"
    )
