"""A method's command, and the error messages of every command."""

import contextlib
import inspect
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

from ssl_core import distributed
from ssl_core.config import given_options, parse_config
from ssl_core.console import Lasting, lasting
from ssl_core.data.workers import WorkerError, worker_error
from ssl_core.pretrain import pretrain
from ssl_core.run import Config, MakeMethod, Prepare, TrainedMethod
from ssl_core.train import CollapseError


@dataclass(frozen=True)
class Command(Generic[Config, TrainedMethod]):
    """A method's command: read the configuration, train, export, evaluate.

    It is called with the command line without the program's name, or with nothing, which reads ``sys.argv``. Its
    recipes are in the folder ``recipes`` beside the module that defines the configuration.

    Attributes:
        prog: name of the command.
        config_class: class of the method's configuration.
        make_method: function (config, encoder, number of its features, views) -> method, on the CPU.
        description: help text of the command.
        prepare: function that prepares work between epochs, as :func:`pretrain` takes it.
    """

    prog: str
    config_class: type[Config]
    make_method: MakeMethod[Config, TrainedMethod]
    description: str
    prepare: Prepare[Config, TrainedMethod] | None = None

    def __call__(self, arguments: Sequence[str] | None = None, *, started: float | None = None) -> None:
        """Run the command.

        Args:
            arguments: command line without the program's name; None reads ``sys.argv``.
            started: time by ``time.monotonic()`` from which a budget counts; None is now.
        """
        recipes = Path(inspect.getfile(self.config_class)).parent / "recipes"
        config = parse_config(
            self.config_class, arguments, prog=self.prog, description=self.description, recipes=recipes
        )
        with lasting("stdout"), errors_in_one_line(self.prog):
            pretrain(
                config,
                self.make_method,
                name=self.prog.removesuffix("-train"),
                prepare=self.prepare,
                given=given_options(arguments),
                started=started,
            )


@contextlib.contextmanager
def errors_in_one_line(prog: str) -> Iterator[None]:
    """Print what a user can cause as one message instead of a traceback, and exit with status 1.

    ``SSL_CORE_TRACEBACK=1`` shows the traceback.
    """
    # torchrun's processes would all say the same.
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING
    logging.basicConfig(format="%(message)s", level=level, stream=sys.stderr)
    # Which would say in each process where they have found credentials, and each request.
    for name in ("aiobotocore", "botocore", "httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        with lasting("stderr"):
            yield
    except Exception as error:  # which of them a user can cause, _message says; others are raised again
        if isinstance(error, BrokenPipeError) and not isinstance(sys.stdout, Lasting):
            raise  # nobody reads what the command prints
        message = _message(error)
        if message is None or os.environ.get("SSL_CORE_TRACEBACK"):
            raise
        sys.stderr.write(f"{prog}: error: {message}\n")
        raise SystemExit(1) from error
    finally:
        distributed.teardown()


_USERS = (ValueError, OSError, FloatingPointError, CollapseError, ImportError, WorkerError)


def _message(error: Exception) -> str | None:
    """The message that tells a user how to mend an error; None for an error that users cannot cause."""
    text = str(error)
    if (lost := distributed.lost_touch(error)) is not None:
        return lost
    if isinstance(error, _USERS):
        return text
    if text.startswith("DataLoader worker"):  # has died; torch raises it at any moment, from a signal
        return str(worker_error(error))
    # Of CUDA, MPS, and the CPU's allocator; after it come sizes of everything.
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        cause = ". ".join(text.split(". ")[:2]).rstrip(".") or "out of memory"
        return (
            f"{cause}; a smaller --train.batch_size, a larger --train.accumulate or --train.precision bfloat16 needs "
            "less, and evaluations run with --device cpu"
        )
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return f"train.compile: {text.partition(chr(10))[0]}; without it the same is trained: --train.compile false"
    return None
