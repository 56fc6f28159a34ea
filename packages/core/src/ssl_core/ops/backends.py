"""The choice of an op's implementation: argument ``backend=``, then SSL_CORE_BACKEND, then the first that fits."""

import logging
import os
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch

logger = logging.getLogger(__name__)

# All that any op has. An op without the one that the environment names makes its own choice.
NAMES = ("cpp", "triton", "cuda", "tiled", "sdpa", "reference")


# Why a back-end cannot run for (device, *dtypes, **problem), which the op defines; None when it can.
Unsupported = Callable[..., str | None]


def runs_anywhere(device: torch.device, *dtypes: torch.dtype, **problem: object) -> None:
    """No reason against any device, dtype or problem: the back-end is plain PyTorch."""


def choose_backend(
    op: str,
    backends: Mapping[str, Unsupported],
    device: torch.device,
    *dtypes: torch.dtype,
    requested: str | None = None,
    **problem: Any,
) -> str:
    """The name of the back-end that the op uses on this device for these dtypes.

    Args:
        op: name of the op, for messages.
        backends: back-ends of the op, in the order in which they are preferred.
        device: device of the op's tensors.
        dtypes: dtypes of the op's tensors, in an order that its back-ends know.
        requested: name of a back-end; None reads the environment variable SSL_CORE_BACKEND, and without it takes the
            first back-end that fits.
        problem: further facts that decide whether a back-end fits, such as ``dim=128``.

    Returns:
        Name of the back-end, a key of ``backends``.

    Raises:
        ValueError: if the requested back-end does not exist or cannot run here; nothing else is taken
            instead.

    Example:
        >>> choose_backend("op", {"tiled": runs_anywhere}, torch.device("cpu"), torch.float32)
        'tiled'
    """
    from_environment = os.environ.get("SSL_CORE_BACKEND") or None
    if from_environment in NAMES and from_environment not in backends:
        from_environment = None
    name = requested or from_environment
    for candidate, unsupported in backends.items():
        if name in (None, candidate) and unsupported(device, *dtypes, **problem) is None:
            return candidate
    available = [
        candidate for candidate, unsupported in backends.items() if unsupported(device, *dtypes, **problem) is None
    ]
    asked = backends.get(name or "")
    reason = asked(device, *dtypes, **problem) if asked else "there is no back-end of that name"
    origin = "backend" if requested else "SSL_CORE_BACKEND"
    raise ValueError(
        f"{origin}={name!r} cannot run {op} on {device.type} with {', '.join(map(str, dtypes))}: {reason}; "
        f"available: {', '.join(available)}"
    )


@cache
def log_choice(
    op: str, backends: tuple[tuple[str, Unsupported], ...], chosen: str, device: torch.device, *dtypes: torch.dtype
) -> None:
    """Say once for each device and dtypes what an op runs as, and why none that is preferred does."""
    reasons = ""
    for name, unsupported in backends:
        if name == chosen:
            break
        reasons += f"; not {name}: {unsupported(device, *dtypes) or 'not asked for, or not for this size'}"
    logger.info("%s on %s runs as %s%s", op, device.type, chosen, reasons)
