"""check_method passes what keeps the promises and names the one that is broken."""

import itertools

import pytest
import torch
from ssl_tiny.small import make_small
from ssl_tiny.train import Tiny
from torch import nn

from ssl_core.testing import check_method

SEEDS = itertools.count()


def make_method(*arguments, **options):
    torch.manual_seed(next(SEEDS))
    return make_small(*arguments, **options)


@pytest.mark.parametrize("negatives", ["queue", "batch"])
def test_a_method_with_and_one_without_queue_and_momentum_branch_keep_the_promises(negatives):
    check_method(lambda: make_method(negatives=negatives))


class ForwardEnqueues(Tiny):
    def forward(self, views, step):
        output = super().forward(views, step)
        self.queue.enqueue_(output.keys)
        return output


class DrawsFromTheGlobalGenerator(Tiny):
    def forward(self, views, step):
        return super().forward((views[0] + 0.1 * torch.randn_like(views[0]), views[1]), step)


class UnusedHead(Tiny):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.predictor = nn.Linear(8, 8)


class TrainsTheMomentumBranch(Tiny):
    def forward(self, views, step):
        output = super().forward(views, step)
        return output._replace(loss=output.loss + self.momentum_projector.requires_grad_(True).weight.mean())


class LongKeys(Tiny):
    def forward(self, views, step):
        output = super().forward(views, step)
        return output._replace(keys=2 * output.keys)


class NoKeys(Tiny):
    def forward(self, views, step):
        return super().forward(views, step)._replace(keys=None)


class CountsTheFillInSteps(Tiny):
    def forward(self, views, step):
        output = super().forward(views, step)
        fill = torch.tensor(step.index * len(output.keys) / len(self.queue.keys))
        return output._replace(metrics=output.metrics | {"queue_fill": fill})


class MetricWithGradient(Tiny):
    def forward(self, views, step):
        output = super().forward(views, step)
        return output._replace(metrics={"positive_similarity": output.loss})


class MetricPerImage(Tiny):
    def forward(self, views, step):
        return super().forward(views, step)._replace(metrics={"similarity": torch.zeros(8)})


class MetricOfPython(Tiny):
    def forward(self, views, step):
        return super().forward(views, step)._replace(metrics={"similarity": 0.5})


class LossPerImage(Tiny):
    def forward(self, views, step):
        output = super().forward(views, step)
        return output._replace(loss=output.loss.expand(8))


class UpdatesTheEncoder(Tiny):
    def update(self, keys, step):
        super().update(keys, step)
        self.encoder[1].weight.data += 1


class ForgetsTheProjector(Tiny):
    def update(self, keys, step):
        kept = self.momentum_projector.weight.clone()
        super().update(keys, step)
        self.momentum_projector.weight.data.copy_(kept)


class EnqueuesNothing(Tiny):
    def update(self, keys, step):
        super().update(keys[:0], step)


class ForgetsTheCursor(Tiny):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.queue.register_buffer("cursor", self.queue.cursor, persistent=False)


class ForgetsTheKeys(Tiny):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.queue.register_buffer("keys", self.queue.keys, persistent=False)


class CountsSteps(Tiny):
    steps = 0

    def forward(self, views, step):
        output = super().forward(views, step)
        return output._replace(loss=output.loss * (1 + 0.1 * self.steps))

    def update(self, keys, step):
        super().update(keys, step)
        self.steps += 1


class LearnsNothing(Tiny):
    def forward(self, views, step):
        output = super().forward(views, step)
        return output._replace(loss=output.loss.detach() + 0 * output.loss)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (ForwardEnqueues, "two calls of forward give two losses"),
        (DrawsFromTheGlobalGenerator, "two calls of forward give two losses"),
        (UnusedHead, r"no gradient reaches \['predictor.weight', 'predictor.bias'\]"),
        (TrainsTheMomentumBranch, "momentum parameters ask for gradient"),
        (LongKeys, "not l2-normalized"),
        (NoKeys, "there is a queue, but forward gives no keys"),
        (CountsTheFillInSteps, "queue_fill is 0.400, of the queue 0.800 is"),
        (MetricWithGradient, "metric positive_similarity carries gradient"),
        (MetricOfPython, "metric similarity is a float, not a tensor"),
        (MetricPerImage, r"metric similarity has shape \(8,\)"),
        (LossPerImage, r"the loss has shape \(8,\)"),
        (UpdatesTheEncoder, r"update changes \['encoder.1.weight'\]"),
        (ForgetsTheProjector, r"update leaves \['momentum_projector.weight'\] as they were"),
        (EnqueuesNothing, "update enqueues nothing"),
        (ForgetsTheCursor, r"does not hold all state.*\['queue.keys'\]"),
        (ForgetsTheKeys, "update enqueues nothing"),
        (CountsSteps, "does not hold all state"),
        (LearnsNothing, "do not lower the loss"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_broken_promise_is_named(broken, message):
    with pytest.raises(AssertionError, match=message):
        check_method(lambda: make_method(broken))


def test_a_method_that_is_made_with_the_same_weights_twice_shows_nothing():

    method = make_method()
    with pytest.raises(AssertionError, match="make_method repeats its weights"):
        check_method(lambda: method)
