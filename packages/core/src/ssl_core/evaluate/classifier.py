"""An encoder with a linear classifier, which learns from labels: alone on a frozen encoder, or both together."""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_core.losses.precision import at_least_float32
from ssl_core.step import Step
from ssl_core.train import StepOutput
from ssl_core.views import ViewSpec

Head: TypeAlias = Literal["zeros", "normal", "torch"]


class Classifier(nn.Module):
    """What the training loop sees of a linear probe, a fine-tuning or a supervised training.

    The loss is the cross-entropy of ``linear(encoder(images))``, or, of labels that are rows of 0 and 1, the binary
    cross-entropy as a mean over images and classes. Features, scores and loss are float32 whatever autocast says. A
    frozen encoder stays in eval mode, has no gradient, and is no part of the module's state.

    Args:
        encoder: (n c s s) -> (n f); ``nn.Identity`` for features that are there already.
        linear: (n f) -> (n classes).
        views: view of the training images.
        frozen: whether the linear layer alone learns.
    """

    def __init__(
        self, encoder: nn.Module, linear: nn.Linear, views: Sequence[ViewSpec] = (), *, frozen: bool = False
    ) -> None:
        super().__init__()
        self.encoder: nn.Module
        if frozen:  # no submodule: neither `train` nor the state of a checkpoint reaches it
            object.__setattr__(self, "encoder", encoder.eval())
        else:
            self.encoder = encoder
        self.linear = linear
        self.views, self.frozen = tuple(views), frozen

    @property
    def projector(self) -> nn.Module:
        """The linear layer."""
        return self.linear

    def forward(self, views: tuple[Tensor, ...], step: Step) -> StepOutput:
        """The loss of one micro-batch: images and their labels."""
        images, labels = views
        with torch.set_grad_enabled(not self.frozen and torch.is_grad_enabled()):
            features = at_least_float32(self.encoder(images))
        with torch.autocast(features.device.type, enabled=False):
            scores = self.linear(features)
        if labels.ndim == 2:
            loss = F.binary_cross_entropy_with_logits(scores, labels.to(scores.dtype))
        else:
            loss = F.cross_entropy(scores, labels)
        return StepOutput(loss, None, {})

    def update(self, keys: Tensor | None, step: Step) -> None:
        """Nothing: all that learns is the optimizer's."""


def make_linear(num_features: int, num_classes: int, head: Head, seed: int) -> nn.Linear:
    """A linear classifier at its start.

    Args:
        num_features: f.
        num_classes: number of classes.
        head: ``zeros``; ``normal``, weights from N(0, 0.01^2) and a bias of zero; ``torch``, as ``nn.Linear`` begins.
        seed: seeds the weights; torch's own generator stays as it is.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        linear = nn.Linear(num_features, num_classes)
        if head != "torch":
            std = 0.01 if head == "normal" else 0.0
            linear.weight.normal_(0.0, std, generator=torch.Generator().manual_seed(seed))
            linear.bias.zero_()
    return linear
