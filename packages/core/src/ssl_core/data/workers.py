"""Worker processes: how images are decoded and views are made beside the main process."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Applied(Dataset[Result], Generic[Item, Result]):
    """A function in the clothes of a data set, so that a DataLoader can call it in its workers."""

    def __init__(self, function: Callable[[Item], Result]) -> None:
        self._function = function

    def __getitem__(self, item: Item) -> Result:
        return self._function(item)


def make_loader(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    *,
    persistent: bool = False,
    pin_memory: bool = False,
) -> DataLoader[Result]:
    """A DataLoader over ``function(item)`` for each item, in order; ``items`` is read anew at each pass.

    Args:
        function: function that the workers call.
        items: whatever the function takes; iterated once per pass.
        workers: processes; 0 calls the function here.
        persistent: whether the workers are kept between passes.
        pin_memory: copy results into page-locked memory, for a GPU.

    Raises:
        ValueError: if workers is negative.
    """
    if workers < 0:
        raise ValueError(f"data.workers must be at least 0, got {workers}")
    # Fork shares the decoded images without a copy. It is safe here: a DataLoader's worker runs on one torch thread,
    # so it never waits for threads that only its parent has. Elsewhere images are pickled into shared memory.
    start_method = "fork" if workers and sys.platform == "linux" else None
    return DataLoader(
        _Applied(function),
        batch_size=None,
        sampler=items,
        num_workers=workers,
        collate_fn=_unchanged,
        worker_init_fn=_prepare_worker,
        persistent_workers=persistent and workers > 0,
        pin_memory=pin_memory,
        multiprocessing_context=start_method,
        # A DataLoader draws a seed at each pass; drawn from here, it leaves torch's own generator alone.
        generator=torch.Generator(),
    )


def worker_map(function: Callable[[Item], Result], items: list[Item], workers: int) -> Iterator[Result]:
    """``function(item)`` for each item, in order, in worker processes where there is more than one item."""
    return iter(make_loader(function, items, workers if len(items) > 1 else 0))


def _unchanged(result: Any) -> Any:
    return result


def _prepare_worker(worker: int) -> None:
    """Leave signals to the main process, which may want to finish a step and save before its workers go.

    Ctrl-C and a scheduler's SIGTERM reach all processes of a job; a worker ends when its parent tells it to.
    """
    logging.getLogger("ssl_core").setLevel(logging.WARNING)  # or each says what an op runs as
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":  # sigwaitinfo is not everywhere
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_leave_when_told_by_parent, daemon=True).start()


def _leave_when_told_by_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
