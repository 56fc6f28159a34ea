import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def storages(values):
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


class Live(TorchDispatchMode):
    """Bytes of the tensors that operations have made and that are still in use, and the most there were at a time."""

    def __init__(self):
        super().__init__()
        self.bytes = self.peak_bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {storage.data_ptr() for storage in storages([args, kwargs])}
        result = function(*args, **(kwargs or {}))
        for storage in {storage.data_ptr(): storage for storage in storages(result)}.values():
            if storage.data_ptr() not in given:
                self._add(storage.nbytes())
                weakref.finalize(storage, self._add, -storage.nbytes())
        return result

    def _add(self, num_bytes):
        self.bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self.bytes)


@pytest.fixture
def peak_bytes():
    """The most bytes that a call has in use at a time, inside of operations not counted."""

    def of_call(run):
        with Live() as live:
            run()
        return live.peak_bytes

    return of_call


class Passes(TorchDispatchMode):
    """The numbers of rows and columns of each call of queue attention."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.ssl_core.queue_attention.default:
            self.sizes.append((len(args[0]), len(args[1])))
        return function(*args, **(kwargs or {}))


@pytest.fixture
def passes():
    """The numbers of rows and columns of each pass over them that a call makes."""

    def of_call(run):
        with Passes() as counted:
            run()
        return counted.sizes

    return of_call
