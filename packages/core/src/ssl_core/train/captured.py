"""A whole optimizer step as one CUDA graph: its thousand kernels are launched once, and replayed at every step.

A graph repeats its kernels on the same addresses. What changes from step to step is therefore kept in tensors that stay
where they are and are renewed before each replay: the views, the learning rates, and what the method takes by
:meth:`ssl_core.step.Step.value`.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ssl_core.step import Step, StepValue
from ssl_core.train.method import StepOutput

logger = logging.getLogger(__name__)

# Steps of each shape that run as they are before one is captured: they make what is kept from step to step, such as the
# optimizer's state, and let libraries choose their kernels.
WARM_UP = 3


class CapturedStep:
    """Calls a function that takes an optimizer step, from the fourth call on as a graph.

    On a CPU, where there are no graphs, the same happens with the function in the graph's place.

    Args:
        body: function of the views and the step that takes the step, of which the host reads nothing.
        optimizer: optimizer that it steps, with a fused kernel where its parameters are on a GPU.

    Attributes:
        is_captured: whether the last step was the replay of a graph.
    """

    def __init__(
        self, body: Callable[[tuple[Tensor, ...], Step], StepOutput], optimizer: torch.optim.Optimizer
    ) -> None:
        self.is_captured = False
        self._body, self._groups = body, optimizer.param_groups
        device = next(parameter.device for group in self._groups for parameter in group["params"])
        self._rates = [torch.zeros((), dtype=torch.float32, device=device) for _ in self._groups]
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's
        self._pool: Any = None  # one memory for all graphs, which never run at once
        self._works: dict[tuple[object, ...], _Work] = {}

    def __call__(self, views: tuple[Tensor, ...], step: Step) -> StepOutput:
        """Take a step; what it returns is overwritten by the next, but for the loss.

        Args:
            views: one (n c h w) tensor for each view.
            step: place in the training.
        """
        shapes = tuple((view.shape, view.stride(), view.dtype) for view in views)
        work = self._works.setdefault(shapes, _Work())
        reads_place = work.reads_place
        self.is_captured = not reads_place and work.steps >= WARM_UP
        if reads_place:
            return self._body(views, step)
        for rate, group in zip(self._rates, self._groups, strict=True):
            rate.fill_(group["lr"])
        if not self.is_captured:
            with self._on_stream():
                output = self._run(work, views, step)
            work.steps += 1
            if work.reads_place:
                logger.warning(
                    "train.capture: steps run as they are, for the method reads its place without step.value"
                )
            return output
        if work.replay is None:
            work.views = tuple(torch.empty_like(view) for view in views)
            work.replay = self._captured(work, step)
        for held, view in zip(work.views, views, strict=True):
            held.copy_(view)
        for function, value in work.values:
            _renew(value, function(step))
        work.replay()
        return work.output._replace(loss=work.output.loss.clone())

    def _run(self, work: "_Work", views: tuple[Tensor, ...], step: Step) -> StepOutput:
        """Call the function, the learning rates in tensors meanwhile."""
        work.calls = 0
        watched = _WatchedStep(*step)
        watched.work = work
        before = [dict(group) for group in self._groups]
        for group, rate in zip(self._groups, self._rates, strict=True):
            group["lr"] = rate
            if self._stream is not None and work.steps == WARM_UP and "capturable" in group:
                group["capturable"] = True  # AdamW asks for it in a graph, and warns of it elsewhere
        try:
            return self._body(views, watched)
        finally:
            for group, old in zip(self._groups, before, strict=True):
                group.update(old)  # checkpoints hold numbers

    def _captured(self, work: "_Work", step: Step) -> Callable[[], None]:
        """A function that repeats the step, for the views and values that are held then."""

        def run() -> None:
            output = self._run(work, work.views, step)
            work.output = output._replace(loss=output.loss.detach())

        if self._stream is None:
            return run
        graph = torch.cuda.CUDAGraph()
        # Threads that pin memory meanwhile are no concern of the graph's.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            run()
        self._pool = graph.pool()
        return graph.replay

    @contextlib.contextmanager
    def _on_stream(self) -> Iterator[None]:
        """On the stream that captures, in order with the caller's."""
        if self._stream is None:
            yield
            return
        caller = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(caller)
        with torch.cuda.stream(self._stream):
            yield
        caller.wait_stream(self._stream)


@dataclass
class _Work:
    """What is kept for views of one shape."""

    steps: int = 0
    reads_place: bool = False
    calls: int = 0  # of `value`, in the step under way
    values: list[tuple[Callable[[Step], StepValue], Tensor]] = field(default_factory=list)
    views: tuple[Tensor, ...] = ()
    replay: Callable[[], None] | None = None
    output: StepOutput = field(init=False)

    def value(self, function: Callable[[Step], StepValue], step: Step, device: torch.device) -> Tensor:
        """The tensor of this call, with the step's value in it unless it is held for a replay."""
        self.calls += 1
        if self.calls > len(self.values):
            new = function(step)
            dtype = None if isinstance(new, Tensor) else torch.float64  # exactly the number
            self.values.append((function, torch.as_tensor(new, dtype=dtype).to(device, copy=True)))
        elif self.steps < WARM_UP:
            _renew(self.values[self.calls - 1][1], function(step))
        return self.values[self.calls - 1][1]


class _WatchedStep(Step):
    """A step that gives values that stay where they are, and tells where its place is read without them."""

    work: _Work

    @property
    def index(self) -> int:  # type: ignore[override]  # a field of the tuple, which cannot tell
        self.work.reads_place = True
        return self[0]

    def value(self, function: Callable[[Step], StepValue], device: torch.device) -> Tensor:
        return self.work.value(function, Step(*self), device)


def _renew(value: Tensor, new: StepValue) -> None:
    if isinstance(new, Tensor):
        value.copy_(new, non_blocking=True)
    else:
        value.fill_(new)
