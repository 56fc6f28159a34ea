"""What torchrun does, but that its processes are forked from this one, which has imported everything already."""

import dataclasses
import multiprocessing.context
import os
import signal
from collections.abc import Callable, Sequence

from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args, get_args_parser


class _Event:
    """An event of processes that may be killed while they wait, after which `multiprocessing.Event.set` hangs."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def set(self) -> None:
        """Let all go on, that wait now or will."""
        os.write(self._write, bytes(64))

    def wait(self) -> None:
        """Wait until it is set."""
        os.read(self._read, 1)


def _hold_signals_around_forks() -> None:
    """Let no signal come while this process forks.

    It would raise in one of the functions that Python calls around a fork. Python drops what they raise, and of
    logging's the lock would stay taken: the agent would wait for it for ever.
    """
    masks = []

    def hold() -> None:
        masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)))

    def release() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.pop())

    # The last to be registered is the first before a fork and the last after it.
    os.register_at_fork(before=hold, after_in_parent=release, after_in_child=release)


def torchrun(options: Sequence[str], function: Callable[[list[str]], None], arguments: list[str]) -> None:
    """Call a function in the processes that torchrun would start with these options.

    torchrun itself starts commands and no functions; for these PyTorch 2.15 has an event, by which the processes that
    are done wait for its agent.
    """
    config, _, _ = config_from_args(get_args_parser().parse_args([*options, "-m", "ssl_sce"]))
    _hold_signals_around_forks()
    multiprocessing.context.ForkContext.Event = lambda _: _Event()
    elastic_launch(dataclasses.replace(config, start_method="fork"), function)(arguments)
