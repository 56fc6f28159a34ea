"""What torchrun does, but that its processes are forked from this one, which has imported everything already."""

import dataclasses
import multiprocessing.context
import os
import signal
from collections.abc import Callable, Sequence
from functools import partial

from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args, get_args_parser

# A signal that comes while the agent forks would raise in one of the functions that Python calls around a fork. Python
# drops what they raise, and of logging's the lock would stay taken: the agent would wait for it for ever.
_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_let_stop = partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, _STOPS)
os.register_at_fork(  # last of all, and so the first before a fork and the last after it
    before=partial(signal.pthread_sigmask, signal.SIG_BLOCK, _STOPS),
    after_in_parent=_let_stop,
    after_in_child=_let_stop,
)


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


def torchrun(options: Sequence[str], function: Callable[[list[str]], None], arguments: list[str]) -> None:
    """Call a function in the processes that torchrun would start with these options.

    torchrun itself starts commands and no functions; for these PyTorch 2.15 has an event, by which the processes that
    are done wait for its agent.
    """
    config, _, _ = config_from_args(get_args_parser().parse_args([*options, "-m", "ssl_sce"]))
    multiprocessing.context.ForkContext.Event = lambda _: _Event()
    elastic_launch(dataclasses.replace(config, start_method="fork"), function)(arguments)
