"""What torchrun does, but that its processes are forked from this one, which has imported everything already."""

import dataclasses
import multiprocessing.context
import os
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


def torchrun(options: Sequence[str], function: Callable[[list[str]], None], arguments: list[str]) -> None:
    """Call a function in the processes that torchrun would start with these options.

    torchrun itself starts commands and no functions; for these PyTorch 2.15 has an event, by which the processes that
    are done wait for its agent.
    """
    config, _, _ = config_from_args(get_args_parser().parse_args([*options, "-m", "ssl_sce"]))
    multiprocessing.context.ForkContext.Event = lambda _: _Event()
    elastic_launch(dataclasses.replace(config, start_method="fork"), function)(arguments)
