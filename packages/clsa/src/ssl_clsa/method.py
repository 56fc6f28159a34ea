"""CLSA as a method: its settings, the views it takes, its loss, and how its momentum branch and its queue move.

Without strong views, or with all views in InfoNCE, it is MoCo v2 and the other baselines of the paper's table 4.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log
from typing import Literal

import torch
from torch import Tensor, nn

from ssl_clsa.loss import clsa_loss
from ssl_core import distributed
from ssl_core.config import refuse_changed
from ssl_core.nn import MomentumBranch, MomentumConfig, Queue, QueueConfig, unit
from ssl_core.train import Step, StepOutput
from ssl_core.views import ViewSpec


@dataclass(frozen=True)
class CLSAConfig:
    """Settings of :class:`CLSA`.

    Attributes:
        num_weak: number of weak views.
        strong_loss: loss of the strong views: ``ddm``, their divergence from the weak ones (distributional divergence
            minimization); ``contrastive``, InfoNCE, as for the weak ones; ``none``, for baselines without strong views.
        temperature: tau, divisor of InfoNCE's similarities.
        divergence_temperature: divisor of the similarities on both sides of the divergence (``clsa_t`` in the released
            code).
        divergence_weight: beta, weight of the divergence (``alpha`` in the released code).
        in_batch_negatives: whether a query is also compared with the other keys of the global batch, as in the
            released code; in the paper it is compared with its own key and the queue.
        reduction: way to reduce the loss: ``sum`` over views and pairs of views, as in the released code, or ``mean``.
        detach_target: whether the target is a constant. False lets gradient into the weak queries through it, by a
            dense computation for small queues.
        symmetric: whether view 1, the first weak view, gives keys too, with view 0 as the weak query in its place. The
            loss is then the mean of both halves, and the keys of both views are enqueued.
        queue: past keys, the negatives.
        momentum: moving average of the online branch, which makes the keys.
    """

    num_weak: int = 1
    strong_loss: Literal["ddm", "contrastive", "none"] = "ddm"
    temperature: float = 0.2
    divergence_temperature: float = 0.2
    divergence_weight: float = 1.0
    in_batch_negatives: bool = True
    reduction: Literal["sum", "mean"] = "sum"
    detach_target: bool = True
    symmetric: bool = False
    queue: QueueConfig = field(default_factory=QueueConfig)
    momentum: MomentumConfig = field(default_factory=MomentumConfig)

    def __post_init__(self) -> None:
        if self.strong_loss != "ddm":
            of_divergence = ("divergence_temperature", "divergence_weight", "detach_target")
            refuse_changed(self, of_divergence, f"with strong_loss {self.strong_loss}")
        if self.divergence_weight < 0:
            raise ValueError(f"divergence_weight must be at least 0, got {self.divergence_weight}")
        for name in ("temperature", "divergence_temperature"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.num_weak < 0:
            raise ValueError(f"num_weak must be at least 0, got {self.num_weak}")
        if self.num_weak == 0 and (self.strong_loss != "contrastive" or self.symmetric):
            raise ValueError(
                f"strong_loss {self.strong_loss!r}, symmetric {self.symmetric} needs weak views, got num_weak 0"
            )


class CLSA(nn.Module):
    """Contrastive Learning with Stronger Augmentations (Wang and Qi, TPAMI 2022, arXiv 2104.07713).

    View 0 is the key view, which goes to the momentum branch. Views 1 to ``num_weak`` are weak and all others strong;
    both go to the online branch. Weak queries learn by InfoNCE, strong ones learn the distribution of the weak ones
    over the keys.

    Args:
        encoder: (n c h w) -> (n f), trained; the backbone that the run exports.
        projector: head after the encoder, (n f) -> (n d).
        config: settings of the method.
        views: views of each image: key view, weak views, strong views.
        dim: d, width of the projector's output.
        seed: seed of the queue's initial rows and the permutations.

    Raises:
        ValueError: for views that do not fit the settings.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        config: CLSAConfig,
        *,
        views: Sequence[ViewSpec],
        dim: int,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config = config
        self.views = tuple(views)
        num_queries = sum(len(view.sizes) for view in self.views) - 1
        num_strong = num_queries - config.num_weak
        described = f"`views` has a key view, {config.num_weak} weak (num_weak) and {num_strong} strong ones"
        if num_strong < 0:
            raise ValueError(
                f"num_weak must be from 0 to {num_queries}, the views after the key view, got {config.num_weak}"
            )
        if config.strong_loss == "none" and num_strong > 0:
            raise ValueError(f"strong_loss 'none' leaves strong views without use: {described}; remove them")
        if config.strong_loss != "none" and num_strong == 0:
            raise ValueError(
                f"strong_loss {config.strong_loss!r} needs strong views: {described}; add some, or take 'none'"
            )
        # Queries of one kind, weak or strong, learn by InfoNCE as MoCo v2's.
        is_base = config.strong_loss != "ddm" and 0 in (config.num_weak, num_strong)
        self.name = "MoCo v2" if is_base else "CLSA" if config.strong_loss == "ddm" else "CLSA with contrastive loss"
        # Queries that learn by InfoNCE.
        self.num_contrastive = num_queries if config.strong_loss == "contrastive" else config.num_weak

        self.encoder = encoder
        self.projector = projector
        self.momentum_branch = MomentumBranch(encoder, projector, config.momentum, seed=seed)
        self.queue = Queue(config.queue, dim, seed=seed)

    def forward(self, views: tuple[Tensor, ...], step: Step) -> StepOutput:
        """The loss of one micro-batch: line 7 of the paper's algorithm 1.

        Args:
            views: one (n c h w) tensor for each view.
            step: place in the training.
        """
        config = self.config
        key_views = range(2 if config.symmetric else 1)
        queries = {view: self._query(views[view]) for view in range(0 if config.symmetric else 1, len(views))}
        keys = [self.momentum_branch(views[view], step, view) for view in key_views]
        all_keys = [distributed.gather(key) for key in keys]
        losses = []
        for view, key, batch_keys in zip(key_views, keys, all_keys, strict=True):
            others = torch.stack([query for other, query in queries.items() if other != view])
            in_batch = batch_keys if config.in_batch_negatives else None
            losses.append(
                clsa_loss(
                    others[: self.num_contrastive],
                    others[self.num_contrastive :],
                    key,
                    self.queue.columns(in_batch, distributed.rank() * len(key)),
                    temperature=config.temperature,
                    divergence_temperature=config.divergence_temperature,
                    divergence_weight=config.divergence_weight,
                    reduction=config.reduction,
                    detach_target=config.detach_target,
                )
            )
        total, contrastive, divergence = (torch.stack(halves).mean() for halves in zip(*losses, strict=True))
        metrics = {
            "contrastive": contrastive.detach(),
            "divergence": divergence.detach(),
            "positive_similarity": (queries[1].detach() * keys[0]).sum(dim=1).mean(),
            "chance_loss": total.new_full((), self._chance_loss(len(views), len(all_keys[0]))),
            "queue_fill": self.queue.fill,
        }
        return StepOutput(total, torch.cat(all_keys), metrics)

    @torch.no_grad()
    def update(self, keys: Tensor | None, step: Step) -> None:
        """Average the online branch into the momentum branch and enqueue the keys of the step just taken."""
        self.momentum_branch.update_(self.encoder, self.projector, step)
        assert keys is not None, "every forward gives keys"
        self.queue.enqueue_(keys)

    def _query(self, images: Tensor) -> Tensor:
        return unit(self.projector(self.encoder(images)))

    def _chance_loss(self, num_views: int, batch_size: int) -> float:
        """Loss of queries that see all keys alike."""
        config = self.config
        pairs = self.num_contrastive * (num_views - 1 - self.num_contrastive)
        terms = self.num_contrastive + config.divergence_weight * pairs
        if config.reduction == "mean":
            terms = 1 + config.divergence_weight * (pairs > 0)
        return terms * log(self.queue.length + (batch_size if config.in_batch_negatives else 1))
