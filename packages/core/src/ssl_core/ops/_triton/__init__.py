"""Back-end ``triton``: one file for each op's kernels, imported at first use because importing Triton takes a second.

With TRITON_INTERPRET=1 Triton runs kernels on the CPU, slowly: for tests. Kernels are marked ``no_type_check``, since
their arguments are Triton's.
"""

import importlib.util
import os
from collections.abc import Collection

import torch

from ssl_core.ops.instructions import Distortion, Opcode, beyond

# The last of both that there are kernels for; those before have kernels too.
LAST_OPCODE, LAST_DISTORTION = Opcode.JIGSAW, Distortion.TRANSLATE_Y_PX
MAX_DIM = 512
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def is_interpreted() -> bool:
    """Whether Triton was told to interpret kernels on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def unsupported(device: torch.device, *dtypes: torch.dtype, dim: int = 1, **problem: object) -> str | None:
    """The reason why the kernels cannot run for tensors of these dtypes on this device."""
    if device.type != "cuda" and not (device.type == "cpu" and is_interpreted()):
        return "it runs on CUDA devices (on the CPU with TRITON_INTERPRET=1, slowly)"
    if not set(dtypes) <= set(_DTYPES):
        return "it computes in float32, float16 and bfloat16"
    if dim > MAX_DIM:
        return f"it holds rows of d up to {MAX_DIM}, got {dim}"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs compute capability 8.0"
    return None


def cannot_render(
    device: torch.device, *dtypes: torch.dtype, opcodes: Collection[Opcode] = (), **problem: object
) -> str | None:
    """The reason why the kernels cannot render views of these opcodes on this device."""
    return unsupported(device) or beyond(opcodes, LAST_OPCODE)
