"""The promises of every method, whatever it computes."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ssl_core.train import Step, StepOutput
from ssl_core.train.captured import WARM_UP, CapturedStep
from ssl_core.trial import random_views as random_views


def check_method(make_method: Callable[[], Any], *, batch_size: int = 8, channels: int = 3) -> None:
    """Check what every method promises: a pure forward, an update that is the only mutation, state that round-trips.

    Momentum modules are recognized by names that start with ``momentum_``, the queue by ``queue.``. A method may
    have neither: then its update has nothing to change.
    The last check takes 20 steps of 0.05 times the gradient; a loss with large weights needs smaller ones here.

    Args:
        make_method: function that builds the method; small, on the CPU, and never with the same weights twice.
        batch_size: number of images of a batch.
        channels: number of channels of an image.

    Raises:
        AssertionError: naming the promise that is broken.
    """
    method = make_method()
    views = random_views(method, batch_size, channels)
    step = Step(index=0, total=40, steps_per_epoch=20)

    before = _state(method)
    output = method(views, step)
    assert output.loss.ndim == 0, f"the loss has shape {tuple(output.loss.shape)}, not that of a scalar"
    assert output.loss.dtype == torch.float32, f"the loss is {output.loss.dtype}, not float32"
    assert output.loss.isfinite(), f"the loss is {output.loss.item()}"
    for name, value in output.metrics.items():
        assert isinstance(value, Tensor), f"metric {name} is a {type(value).__name__}, not a tensor"
        assert value.ndim == 0, f"metric {name} has shape {tuple(value.shape)}, not that of a scalar"
        assert not value.requires_grad, f"metric {name} carries gradient"
    assert torch.equal(output.loss, method(views, step).loss), "two calls of forward give two losses"
    changed = _changed(before, _state(method))
    assert not changed, f"forward changes {sorted(changed)}"

    output.loss.backward()
    parameters = dict(method.named_parameters())
    frozen = [name for name in parameters if name.startswith("momentum_")]
    asking = [name for name in frozen if parameters[name].requires_grad]
    assert not asking, f"momentum parameters ask for gradient: {asking}"
    without = [name for name, value in parameters.items() if value.requires_grad and value.grad is None]
    assert not without, f"no gradient reaches {without}"
    if output.keys is not None:
        assert not output.keys.requires_grad, "the keys carry gradient"
        norms = output.keys.norm(dim=1)
        torch.testing.assert_close(norms, torch.ones_like(norms), msg="the keys are not l2-normalized")

    with torch.no_grad():
        for parameter in parameters.values():  # so that every momentum parameter has something to follow
            if parameter.requires_grad:
                parameter += 0.1
    before = _state(method)
    has_queue = any(name.startswith("queue.") for name in before)
    assert output.keys is not None or not has_queue, "there is a queue, but forward gives no keys to enqueue"
    method.update(output.keys, step)
    changed = _changed(before, _state(method))
    owned = {name for name in before if name.startswith(("momentum_", "queue."))}
    assert changed <= owned, f"update changes {sorted(changed - owned)}"
    unmoved = {name for name in frozen if parameters[name].numel() > 1} - changed
    assert not unmoved, f"update leaves {sorted(unmoved)} as they were"
    assert "queue.keys" in changed or not has_queue, "update enqueues nothing"

    if has_queue:
        copied = copy.deepcopy(method)
        copied.update(output.keys, step)  # as much again, as with two micro-batches
        fill = copied(views, step._replace(index=1)).metrics["queue_fill"]
        expected = min(1.0, 2 * len(output.keys) / len(method.queue.keys))
        assert torch.isclose(fill, torch.tensor(expected)), f"queue_fill is {fill:.3f}, of the queue {expected:.3f} is"

    other = make_method()
    assert not torch.equal(other(views, step).loss, method(views, step).loss), "make_method repeats its weights"
    other.load_state_dict(method.state_dict())
    _check_alike(method, other, views, step)
    # The next update writes where the last one stopped.
    step = step._replace(index=1)
    for each in (method, other):
        each.update(output.keys, step)
    _check_alike(method, other, views, step)

    _check_captured(method, other, views)
    losses = []
    for index in range(20):
        method.zero_grad()
        output = method(views, Step(index, 40, 20))
        output.loss.backward()
        _descend(method, 0.05)
        losses.append(output.loss.item())
    assert sum(losses[-5:]) < sum(losses[:5]), f"20 steps of 0.05 times the gradient do not lower the loss: {losses}"


def _state(method: Any) -> dict[str, Tensor]:
    """Parameters and buffers, but BatchNorm's running statistics, which move in forward as they always do."""
    moving = ("running_mean", "running_var", "num_batches_tracked")
    return {name: value.clone() for name, value in method.state_dict().items() if not name.endswith(moving)}


def _changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def _check_alike(method: Any, copy: Any, views: tuple[Tensor, ...], step: Step) -> None:
    different = _changed(_state(method), _state(copy))
    alike = not different and torch.equal(method(views, step).loss, copy(views, step).loss)
    assert alike, f"the state dict does not hold all state: a copy goes on differently {sorted(different)}"


def _check_captured(method: Any, copy: Any, views: tuple[Tensor, ...]) -> None:
    """Check that training with ``train.capture``, but for the graph, gives the same losses to the last bit."""

    def taken_by(method: Any, optimizer: torch.optim.Optimizer) -> Callable[[tuple[Tensor, ...], Step], StepOutput]:
        def taken(views: tuple[Tensor, ...], step: Step) -> StepOutput:
            optimizer.zero_grad()
            output: StepOutput = method(views, step)
            output.loss.backward()  # type: ignore[no-untyped-call]  # torch's
            optimizer.step()
            method.update(output.keys, step)
            return output

        return taken

    optimizers = [torch.optim.SGD(each.parameters(), lr=0.01) for each in (method, copy)]
    taken, captured = taken_by(method, optimizers[0]), CapturedStep(taken_by(copy, optimizers[1]), optimizers[1])
    for index in range(2, WARM_UP + 4):
        step = Step(index, 40, 20)
        loss, other = taken(views, step).loss, captured(views, step).loss
        assert loss.item() == other.item(), (
            f"step {index} has another loss, {other}, where steps are captured, than {loss}"
        )
    assert captured.is_captured, "forward or update reads its place in the training without step.value"


@torch.no_grad()
def _descend(method: Any, learning_rate: float) -> None:
    for parameter in method.parameters():
        if parameter.grad is not None:
            parameter -= learning_rate * parameter.grad
