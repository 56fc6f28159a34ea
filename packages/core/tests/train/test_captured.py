"""A captured step against the same step as it is; on a CPU with the function in the graph's place."""

import gc
import logging
import weakref
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from ssl_core.losses import Columns, soft_target_cross_entropy
from ssl_core.nn import MomentumBranch, MomentumConfig, Queue, QueueConfig, unit
from ssl_core.philox import permutation
from ssl_core.train import OptimConfig, Step, StepOutput, TrainConfig, make_optimizer, stepper
from ssl_core.train.captured import WARM_UP, CapturedStep
from ssl_core.train.stepper import Stepper, why_not_captured
from ssl_core.train.window import Window

Batch = namedtuple("Batch", ["views", "index"])
CPU = torch.device("cpu")
STEPS = WARM_UP + 4


class Regression:
    """Steps of a linear map, whose loss has a factor and an order of the images that change from step to step."""

    def __init__(self, config, place=None):
        torch.manual_seed(0)
        self.map = nn.Linear(4, 4)
        self.optimizer = make_optimizer(self.map, config, batch_size=256)
        self.place = place or (lambda step, function: step.value(function, CPU))

    def __call__(self, views, step):
        (images,) = views
        factor = self.place(step, lambda step: 1 / (1 + step.index))
        order = step.value(lambda step: permutation(0, (0, step.index), len(images)), CPU)
        self.optimizer.zero_grad()
        loss = (factor * (self.map(images[order]) - images).square()).mean()
        loss.backward()
        self.optimizer.step()
        return StepOutput(loss, None, {})


def losses(taken, regression, sizes=(8,)):
    found = []
    for index in range(STEPS * len(sizes)):
        for group in regression.optimizer.param_groups:
            group["lr"] = 0.1 / (1 + index)
        views = (torch.randn(sizes[index % len(sizes)], 4, generator=torch.Generator().manual_seed(index)),)
        found.append(taken(views, Step(index, 100, 10)).loss)
    return [loss.item() for loss in found]


@pytest.mark.parametrize(
    "config",
    [OptimConfig(), OptimConfig(nesterov=True, exclude_1d=True, lr_1d=0.03), OptimConfig("adamw")],
    ids=["sgd", "groups", "adamw"],
)
def test_views_rates_and_values_are_renewed(config):
    as_it_is, other = Regression(config), Regression(config)
    captured = CapturedStep(other, other.optimizer)
    # A rate that is a tensor is float32, in which AdamW's step on a CPU divides it.
    close = {"rtol": 1e-5, "atol": 1e-7} if config.name == "adamw" else {"rtol": 0, "atol": 0}
    expected, found = losses(as_it_is, as_it_is), losses(captured, other)
    torch.testing.assert_close(torch.tensor(expected), torch.tensor(found), **close)
    assert captured.is_captured
    torch.testing.assert_close(as_it_is.map.state_dict(), other.map.state_dict(), **close)
    # Checkpoints hold numbers.
    assert as_it_is.optimizer.state_dict()["param_groups"] == other.optimizer.state_dict()["param_groups"]


def test_a_group_of_no_parameters_may_be_the_first():
    normalization = nn.LayerNorm(4)
    optimizer = make_optimizer(normalization, OptimConfig(exclude_1d=True), batch_size=256)
    assert not optimizer.param_groups[0]["params"]
    captured = CapturedStep(lambda views, step: StepOutput(normalization(views[0]).mean(), None, {}), optimizer)
    assert captured((torch.ones(2, 4),), Step(0, 1, 1)).loss.isfinite()


def test_each_shape_of_views_is_captured_apart():
    as_it_is, other = Regression(OptimConfig()), Regression(OptimConfig())
    calls = []

    def counted(views, step):
        calls.append(views[0])
        return other(views, step)

    assert losses(as_it_is, as_it_is, (8, 5)) == losses(CapturedStep(counted, other.optimizer), other, (8, 5))
    addresses = [{views.data_ptr() for views in calls[2 * WARM_UP :] if len(views) == rows} for rows in (8, 5)]
    assert [len(each) for each in addresses] == [1, 1]


def test_a_method_that_reads_its_place_runs_as_it_is(caplog):
    def read(step, function):
        return 1 / (1 + step.index)

    as_it_is, other = Regression(OptimConfig()), Regression(OptimConfig(), read)
    captured = CapturedStep(other, other.optimizer)
    with caplog.at_level(logging.WARNING):
        assert losses(as_it_is, as_it_is) == losses(captured, other)
    assert not captured.is_captured
    assert caplog.text.count("steps run as they are, for the method reads its place without step.value") == 1


@pytest.mark.parametrize(
    ("changes", "optimizer", "reason"),
    [
        ({}, OptimConfig(), "SGD reads its learning rate on the host"),
        ({}, OptimConfig("lars"), "Lars reads its learning rate on the host"),
        ({"accumulate": 2}, OptimConfig(), "a step has several micro-batches"),
        ({"compile": True}, OptimConfig(), "train.compile makes graphs of its own"),
    ],
    ids=["sgd on a cpu", "lars", "accumulate", "compile"],
)
def test_what_cannot_be_captured_has_a_reason(changes, optimizer, reason):
    made = make_optimizer(nn.Linear(2, 2), optimizer, batch_size=256)
    assert why_not_captured(TrainConfig(capture=True, **changes), made, torch.device("cuda")) == reason


class Contrast(nn.Module):
    """SCE with all that a method may have: shuffle-BN, a momentum and a temperature that change, a queue that fills."""

    views = ()

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
        self.projector = nn.Linear(8 * 36, 64)
        self.momentum_branch = MomentumBranch(self.encoder, self.projector, MomentumConfig(0.9, "cosine"))
        self.queue = Queue(QueueConfig(40, "empty", "bfloat16"), 64)

    def forward(self, views, step):
        query, key = unit(self.projector(self.encoder(views[0]))), self.momentum_branch(views[1], step)
        loss = soft_target_cross_entropy(
            query,
            key,
            key,
            Columns(self.queue.keys, self.queue.valid_length),
            temperature=0.1,
            target_temperature=step.value(lambda step: 0.05 + 0.01 * step.progress, key.device),
            coefficient=step.value(lambda step: step.progress, key.device),
        )
        return StepOutput(loss.mean(), key, {"queue_fill": self.queue.fill})

    def update(self, keys, step):
        self.momentum_branch.update_(self.encoder, self.projector, step)
        self.queue.enqueue_(keys)


def test_a_cpu_takes_steps_as_they_are_and_says_so(caplog):
    method = Contrast()
    with caplog.at_level(logging.INFO):
        Stepper(method, make_optimizer(method, OptimConfig(), batch_size=256), TrainConfig(capture=True))
    assert "steps run as they are, for a graph is of a GPU's work, and the device is cpu" in caplog.text


def test_a_stepper_that_is_left_frees_its_graphs_without_a_collection_of_garbage(monkeypatch):
    monkeypatch.setattr(stepper, "why_not_captured", lambda *_: None)
    method = Contrast()
    taking = Stepper(method, make_optimizer(method, OptimConfig(), batch_size=256), TrainConfig(capture=True))
    captured = weakref.ref(taking._captured)
    gc.disable()
    try:
        del taking
        assert captured() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_method_with_a_queue_gives_the_losses_of_its_steps(device, optimizer, monkeypatch):
    monkeypatch.setattr(stepper, "why_not_captured", lambda *_: None)
    found, config = {}, TrainConfig(capture=True)
    for captured in (False, True):
        method = Contrast().to(device)
        made = make_optimizer(method, OptimConfig(optimizer, lr=0.01), batch_size=256)
        taking = Stepper(method, made, replace(config, capture=captured))
        window = Window(Path(), str, None)
        generator = torch.Generator().manual_seed(0)
        batches = (
            Batch(tuple(torch.randn(2, 16, 3, 8, 8, generator=generator)), torch.arange(16)) for _ in range(STEPS)
        )
        found[captured] = [taking.take(batches, Step(index, STEPS, STEPS), window).loss for index in range(STEPS)]
        assert not captured or taking._captured.is_captured
        found[captured].append(method.queue.keys.float().sum())
    for one, other in zip(found[False], found[True], strict=True):
        if (device, optimizer) == ("cpu", "sgd"):
            assert torch.equal(one, other)
        else:  # a GPU's sums are in no fixed order
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
