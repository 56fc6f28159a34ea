"""The momentum encoder starts as a copy of the online one; `ssl_core.ops.momentum_update_` moves it."""

import copy
from typing import TypeVar

from torch import nn

_Module = TypeVar("_Module", bound=nn.Module)


def momentum_copy(module: _Module) -> _Module:
    """A copy of a module with the same parameters and buffers, none of which asks for gradient.

    It is an ordinary submodule: ``train()`` and ``eval()`` of its owner reach it, and its BatchNorm layers
    keep running statistics of their own.

    Example:
        >>> online = nn.Linear(2, 2)
        >>> momentum = momentum_copy(online)
        >>> bool((momentum.weight == online.weight).all()), momentum.weight.requires_grad
        (True, False)
    """
    return copy.deepcopy(module).requires_grad_(False)
