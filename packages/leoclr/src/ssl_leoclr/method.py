"""LeOCLR as a method: its settings, the views it takes, its loss, and how its momentum branch and its queue move.

With two views it is its baseline: MoCo v2, or SimCLR end to end.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log
from typing import Literal

import torch
from torch import Tensor, nn

from ssl_core import distributed
from ssl_core.config import refuse_changed
from ssl_core.losses import nt_xent
from ssl_core.nn import MomentumBranch, MomentumConfig, Queue, QueueConfig, unit
from ssl_core.train import Step, StepOutput
from ssl_core.views import RandomCrop, RandomResizedCrop, ViewSpec
from ssl_leoclr.loss import leoclr_loss


@dataclass(frozen=True)
class LeOCLRConfig:
    """Settings of :class:`LeOCLR`.

    Attributes:
        framework: method underneath: ``moco``, with a momentum branch for the crops and a queue of negatives; or
            ``simclr``, where all views go through the one trained encoder and each pair of views has SimCLR's loss over
            the batch.
        anchor: kind of view 0: ``full``, the whole image, or ``random_crop``, cut at random as the others are; checked
            against the views.
        attract: views that the crops are attracted to: the ``anchor`` alone, or ``all``, each other as well.
        temperature: tau, divisor of the similarities.
        enqueue: crops whose keys enter the queue, ``first`` or ``both``; for ``moco`` alone.
        queue: past keys, the negatives; for ``moco`` alone.
        momentum: moving average of the online branch, which makes the keys; for ``moco`` alone.
    """

    framework: Literal["moco", "simclr"] = "moco"
    anchor: Literal["full", "random_crop"] = "full"
    attract: Literal["anchor", "all"] = "anchor"
    temperature: float = 0.2
    enqueue: Literal["first", "both"] = "first"
    queue: QueueConfig = field(default_factory=QueueConfig)
    momentum: MomentumConfig = field(default_factory=MomentumConfig)

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        if self.framework == "simclr":
            refuse_changed(self, ("enqueue", "queue", "momentum"), "with framework simclr")


class LeOCLR(nn.Module):
    """Leveraging Original Images for Contrastive Learning (Alkhalefi et al., TMLR 2024, arXiv 2403.06813).

    View 0 is the anchor, the whole image; views 1 and 2 are crops of it. Both crops are attracted to the anchor. With
    two views the second is attracted to the first; if both are crops, that is MoCo v2 or SimCLR.

    Args:
        encoder: (n c h w) -> (n f), trained; the backbone that the run exports.
        projector: head after the encoder, (n f) -> (n d).
        config: settings of the method.
        views: views of each image: the anchor and two crops, or two views for a baseline.
        dim: d, width of the projector's output.
        seed: seed of the queue's initial rows and the permutations.

    Raises:
        ValueError: for views that do not fit the settings.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        config: LeOCLRConfig,
        *,
        views: Sequence[ViewSpec],
        dim: int,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config = config
        self.views = tuple(views)
        self.num_crops = sum(len(view.sizes) for view in self.views) - 1
        if self.num_crops not in (1, 2):
            raise ValueError(
                "LeOCLR takes three views, the anchor and two crops, or two for its baseline; "
                f"`views` has {self.num_crops + 1}"
            )
        is_cut = any(isinstance(op, RandomResizedCrop | RandomCrop) for op in self.views[0].ops)
        if is_cut != (config.anchor == "random_crop"):
            raise ValueError(
                f"anchor {config.anchor!r}, but the first of `views`, {self.views[0].name!r}, "
                f"is {'cut at random' if is_cut else 'the whole image'}: change one of the two"
            )
        for name in ("attract", "enqueue"):
            if self.num_crops == 1 and getattr(config, name) in ("all", "both"):
                raise ValueError(
                    f"{name} {getattr(config, name)!r} is about two crops, but `views` has one beside the anchor"
                )
        base = {"moco": "MoCo v2", "simclr": "SimCLR"}[config.framework]
        self.name = base if is_cut and self.num_crops == 1 else f"LeOCLR over {base}"

        self.encoder = encoder
        self.projector = projector
        if config.framework == "moco":
            self.momentum_branch = MomentumBranch(encoder, projector, config.momentum, seed=seed)
            self.queue = Queue(config.queue, dim, seed=seed)

    def forward(self, views: tuple[Tensor, ...], step: Step) -> StepOutput:
        """The loss of one micro-batch: equation (3) of the paper.

        Args:
            views: one (n c h w) tensor for each view.
            step: place in the training.
        """
        return self._against_queue(views, step) if self.config.framework == "moco" else self._against_batch(views)

    @torch.no_grad()
    def update(self, keys: Tensor | None, step: Step) -> None:
        """Average the online branch into the momentum branch and enqueue the keys of the step just taken."""
        if keys is not None:
            self.momentum_branch.update_(self.encoder, self.projector, step)
            self.queue.enqueue_(keys)

    def _against_queue(self, views: tuple[Tensor, ...], step: Step) -> StepOutput:
        columns = self.queue.columns()
        anchor, *crops = views
        query = self._query(anchor)
        keys = torch.stack([self.momentum_branch(crop, step, view) for view, crop in enumerate(crops)])
        loss = leoclr_loss(query, keys, columns, temperature=self.config.temperature)
        if self.config.attract == "all":
            for crop, key in zip(crops, keys.flip(0), strict=True):
                loss = loss + leoclr_loss(self._query(crop), key[None], columns, temperature=self.config.temperature)
        to_enqueue = torch.cat(
            [distributed.gather(key) for key in (keys if self.config.enqueue == "both" else keys[:1])]
        )
        num_terms = self.num_crops * (2 if self.config.attract == "all" else 1)
        metrics = {
            "positive_similarity": (query.detach() * keys).sum(dim=-1).mean(),
            "chance_loss": query.new_full((), num_terms * log(self.queue.length + 1)),
            "queue_fill": self.queue.fill,
        }
        return StepOutput(loss, to_enqueue, metrics)

    def _against_batch(self, views: tuple[Tensor, ...]) -> StepOutput:
        queries = [self._query(view) for view in views]
        is_alone = distributed.world_size() == 1
        gathered = [query if is_alone else distributed.gather_with_grad(query) for query in queries]
        row_offset = distributed.rank() * len(queries[0])
        pairs = [(0, crop) for crop in range(1, len(views))]
        if self.config.attract == "all":
            pairs.append((1, 2))
        # A pair sees the rows of its own two views alone, so that no crop is a negative of its image's other crop.
        losses = [
            nt_xent(
                queries[a],
                queries[b],
                self.config.temperature,
                batch=None if is_alone else (gathered[a], gathered[b]),
                row_offset=row_offset,
            )
            for a, b in pairs
        ]
        similarity = torch.stack([(queries[a] * queries[b]).sum(dim=1) for a, b in pairs])
        metrics = {
            "positive_similarity": similarity.detach().mean(),
            "chance_loss": queries[0].new_full((), len(pairs) * log(2 * len(gathered[0]) - 1)),
        }
        return StepOutput(torch.stack(losses).sum(), None, metrics, embeddings=queries[0].detach())

    def _query(self, images: Tensor) -> Tensor:
        return unit(self.projector(self.encoder(images)))
