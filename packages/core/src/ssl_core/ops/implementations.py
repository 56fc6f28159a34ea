"""What ``ssl-core doctor`` prints: the implementation behind each op on each device of this machine."""

import torch

from ssl_core.ops.backends import choose_backend
from ssl_core.ops.queue_attention import BACKENDS


def implementations() -> dict[str, dict[str, str]]:
    """The implementation that each op uses on each device type present, for float32 and no ``backend=``.

    Returns:
        Op name -> device type -> implementation. ``reference`` is the plain PyTorch specification itself.

    Raises:
        ValueError: if SSL_CORE_BACKEND asks for what cannot run.

    Example:
        >>> implementations()["momentum_update_"]["cpu"]
        'reference'
    """
    devices = ["cpu"]
    devices += ["cuda"] if torch.cuda.is_available() else []
    devices += ["mps"] if torch.backends.mps.is_available() else []
    return {
        "queue_attention": {
            name: choose_backend("queue_attention", BACKENDS, torch.device(name), torch.float32) for name in devices
        },
        "enqueue_": dict.fromkeys(devices, "reference"),
        "momentum_update_": dict.fromkeys(devices, "reference"),
    }
