"""SCE as a method: its settings, the views it takes, its loss, and how its momentum branch and its queue move.

With ``coefficient`` 1 it is MoCo v2; with ``weights`` (0, 1, 0) it is ReSSL.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log
from typing import Literal

import torch
from torch import Tensor, nn

from ssl_core import distributed
from ssl_core.config import refuse_changed
from ssl_core.nn import MomentumBranch, MomentumConfig, Queue, QueueConfig, unit
from ssl_core.train import Step, StepOutput, scalar_schedule
from ssl_core.views import ViewSpec
from ssl_sce.loss import sce_loss


@dataclass(frozen=True)
class SCEConfig:
    """Settings of :class:`SCE`.

    Attributes:
        temperature: tau, divisor of the online similarities.
        target_temperature: tau_m, divisor of the target's similarities.
        target_temperature_start: value at which the cosine warm-up of ``target_temperature`` starts.
        target_temperature_warmup_epochs: length of that warm-up; 0 for none.
        coefficient: lambda, weight of the one-hot in the target.
        coefficient_start: value at which the linear warm-up of ``coefficient`` starts.
        coefficient_warmup_epochs: length of that warm-up; 0 for none.
        coefficient_final: value that ``coefficient`` reaches at the last step, linearly; None to keep it.
        weights: weights (lambda, mu, eta) of InfoNCE, ReSSL and Ceil (the paper's Proposition 1), in place of
            ``coefficient``.
        self_similarity: the positive in the target's softmax: ``mask`` leaves it out (paper), ``zero`` gives it the
            similarity 0 (released code).
        in_batch_negatives: whether a query is also compared with the other keys of the global batch.
        symmetric: whether both global views give targets and keys for the queue.
        queue: past keys, the negatives.
        momentum: moving average of the online branch, which makes the keys.
    """

    temperature: float = 0.1
    target_temperature: float = 0.05
    target_temperature_start: float = 0.05
    target_temperature_warmup_epochs: float = 0.0
    coefficient: float = 0.5
    coefficient_start: float = 1.0
    coefficient_warmup_epochs: float = 0.0
    coefficient_final: float | None = None
    weights: tuple[float, float, float] | None = None
    self_similarity: Literal["mask", "zero"] = "mask"
    in_batch_negatives: bool = False
    symmetric: bool = False
    queue: QueueConfig = field(default_factory=QueueConfig)
    momentum: MomentumConfig = field(default_factory=lambda: MomentumConfig(0.996, "cosine"))

    def __post_init__(self) -> None:
        for name in ("temperature", "target_temperature", "target_temperature_start"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.coefficient <= 1:
            raise ValueError(f"coefficient must be between 0 and 1, got {self.coefficient}")
        if self.weights is not None:
            of_coefficient = ("coefficient", "coefficient_start", "coefficient_warmup_epochs", "coefficient_final")
            refuse_changed(self, of_coefficient, f"with weights {list(self.weights)}")

    @property
    def name(self) -> str:
        """Which method it is: SCE, or MoCo v2 or ReSSL where the others of Proposition 1 have no weight."""
        if self.weights is None:
            start = self.coefficient_start if self.coefficient_warmup_epochs else self.coefficient
            end = self.coefficient if self.coefficient_final is None else self.coefficient_final
            return "MoCo v2" if start == self.coefficient == end == 1 else "SCE"
        info_nce, ressl, ceil = map(bool, self.weights)
        return "SCE" if ceil or info_nce == ressl else "MoCo v2" if info_nce else "ReSSL"

    def coefficient_at(self, step: Step) -> float:
        """Lambda at a step."""
        return scalar_schedule(
            self.coefficient,
            step.index,
            step.total,
            start=self.coefficient_start,
            warmup_steps=round(self.coefficient_warmup_epochs * step.steps_per_epoch),
            final=self.coefficient_final,
        )

    def target_temperature_at(self, step: Step) -> float:
        """tau_m at a step."""
        return scalar_schedule(
            self.target_temperature,
            step.index,
            step.total,
            start=self.target_temperature_start,
            warmup_steps=round(self.target_temperature_warmup_epochs * step.steps_per_epoch),
            warmup_shape="cosine",
        )


class SCE(nn.Module):
    """Similarity Contrastive Estimation (Denize et al., WACV 2023, arXiv 2111.14585).

    View 0 is the target view. Without ``symmetric`` it goes to the momentum branch alone, and every other view goes to
    the online branch. With ``symmetric``, views 0 and 1 go to both branches, and further views (local crops) to the
    online branch only. The loss is the mean over all pairs of a target view and another online view.

    Args:
        encoder: (n c h w) -> (n f), trained; the backbone that the run exports.
        projector: head after the encoder, (n f) -> (n d).
        config: settings of the method.
        views: views of each image; at least two.
        dim: d, width of the projector's output.
        predictor: head after the projector on the online branch only, (n d) -> (n d); None for none.
        seed: seed of the queue's initial rows and the permutations.

    Raises:
        ValueError: for fewer than two views.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        config: SCEConfig,
        *,
        views: Sequence[ViewSpec],
        dim: int,
        predictor: nn.Module | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config = config
        self.name = config.name
        self.views = tuple(views)
        num_views = sum(len(view.sizes) for view in self.views)
        if num_views < 2:
            raise ValueError(f"SCE needs at least two views of an image, got {num_views}: add one to `views`")
        self.num_targets = 2 if config.symmetric else 1
        self.online_views = range(0 if config.symmetric else 1, num_views)

        self.encoder = encoder
        self.projector = projector
        self.predictor = predictor if predictor is not None else nn.Identity()
        self.momentum_branch = MomentumBranch(encoder, projector, config.momentum, seed=seed)
        self.queue = Queue(config.queue, dim, seed=seed)

    def forward(self, views: tuple[Tensor, ...], step: Step) -> StepOutput:
        """The loss of one micro-batch: equation (8) of the paper, averaged over pairs of views.

        Args:
            views: one (n c h w) tensor for each view.
            step: place in the training.
        """
        config = self.config
        queries = {view: self._query(views[view]) for view in self.online_views}
        keys = [self.momentum_branch(views[view], step, view) for view in range(self.num_targets)]
        all_keys = [distributed.gather(key) for key in keys]
        coefficient = config.coefficient if config.weights else step.value(config.coefficient_at, keys[0].device)
        target_temperature = step.value(config.target_temperature_at, keys[0].device)
        losses = []
        for target, (key, batch_keys) in enumerate(zip(keys, all_keys, strict=True)):
            in_batch = batch_keys if config.in_batch_negatives else None
            losses.append(
                sce_loss(
                    torch.stack([queries[view] for view in self.online_views if view != target]),
                    key,
                    self.queue.columns(in_batch, distributed.rank() * len(key)),
                    temperature=config.temperature,
                    target_temperature=target_temperature,
                    coefficient=coefficient,
                    weights=config.weights,
                    self_similarity=config.self_similarity,
                )
            )
        loss = torch.stack(losses).mean()  # each over as many pairs
        metrics = {
            "positive_similarity": (queries[1].detach() * keys[0]).sum(dim=1).mean(),
            "chance_loss": loss.new_full((), self._chance_loss(len(all_keys[0]))),
            "queue_fill": self.queue.fill,
        }
        return StepOutput(loss, torch.cat(all_keys), metrics)

    @torch.no_grad()
    def update(self, keys: Tensor | None, step: Step) -> None:
        """Average the online branch into the momentum branch and enqueue the keys of the step just taken."""
        self.momentum_branch.update_(self.encoder, self.projector, step)
        assert keys is not None, "every forward gives keys"
        self.queue.enqueue_(keys)

    def _query(self, images: Tensor) -> Tensor:
        return unit(self.predictor(self.projector(self.encoder(images))))

    def _chance_loss(self, batch_size: int) -> float:
        """Loss of queries that see all keys alike."""
        negatives = self.queue.length + (batch_size - 1 if self.config.in_batch_negatives else 0)
        info_nce, ressl = log(negatives + 1), log(negatives)
        if self.config.weights is None:
            return info_nce
        contrastive, relational, ceiling = self.config.weights
        return contrastive * info_nce + relational * ressl + ceiling * (info_nce - ressl)
