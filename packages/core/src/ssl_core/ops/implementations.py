"""The implementation behind each op on each device of this machine, which ``ssl-core doctor`` prints."""

import torch

from ssl_core.ops.backends import choose_backend
from ssl_core.ops.enqueue import BACKENDS as ENQUEUE
from ssl_core.ops.momentum_update import BACKENDS as MOMENTUM_UPDATE
from ssl_core.ops.queue_attention import BACKENDS as QUEUE_ATTENTION
from ssl_core.ops.render_views import BACKENDS as RENDER_VIEWS


def implementations() -> dict[str, dict[str, str]]:
    """The implementation that each op uses on each device type present, for float32 and no ``backend=``.

    Returns:
        Mapping op name -> device type -> implementation. ``reference`` is the plain PyTorch specification itself.

    Raises:
        ValueError: if SSL_CORE_BACKEND asks for what cannot run.

    Example:
        >>> sorted(implementations())
        ['enqueue_', 'momentum_update_', 'queue_attention', 'render_views']
    """
    devices = ["cpu"]
    devices += ["cuda"] if torch.cuda.is_available() else []
    devices += ["mps"] if torch.backends.mps.is_available() else []
    ops = {
        "queue_attention": QUEUE_ATTENTION,
        "enqueue_": ENQUEUE,
        "momentum_update_": MOMENTUM_UPDATE,
        "render_views": RENDER_VIEWS,
    }
    return {
        op: {device: choose_backend(op, backends, torch.device(device), torch.float32) for device in devices}
        for op, backends in ops.items()
    }
