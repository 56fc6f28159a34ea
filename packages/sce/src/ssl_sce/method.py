"""SCE as a method: which views it takes, its loss, and how its momentum branch and its queue move.

With ``coefficient`` 1 it is MoCo v2; with ``weights`` (0, 1, 0) it is ReSSL.
"""

from collections.abc import Sequence
from math import log
from typing import Literal

import torch
from torch import Tensor, nn

from ssl_core import distributed
from ssl_core.losses import Columns
from ssl_core.nn import MomentumBranch, Queue, unit
from ssl_core.train import Step, StepOutput, cosine_schedule, scalar_schedule
from ssl_core.views import ViewSpec
from ssl_sce.loss import sce_loss


class SCE(nn.Module):
    """Similarity Contrastive Estimation (Denize et al., WACV 2023, arXiv 2111.14585).

    View 0 is the target view. Without ``symmetric`` it goes to the momentum branch alone and every other view to
    the online branch; with it, views 0 and 1 go to both branches and further views (local crops) to the online
    branch only. The loss is the mean over all pairs of a target view and another online view.

    Args:
        encoder: (n c h w) -> (n f); trained, and the backbone that the run exports.
        projector: (n f) -> (n d).
        predictor: (n d) -> (n d) on the online branch only; None for none.
        views: what each image becomes; at least two.
        dim: d, the width of the projector's output.
        queue_length: k, rows of the queue; at least what one step enqueues.
        queue_initial: ``random`` rows that count as keys, as in the released code, or ``empty``.
        queue_dtype: ``bfloat16`` halves the queue; on a GPU the products with it are then bfloat16 too.
        temperature: tau, of the online similarities.
        target_temperature: tau_m, of the target's similarities.
        target_temperature_start: where its cosine warm-up starts.
        target_temperature_warmup_epochs: how long that takes; 0 for none.
        coefficient: lambda, the weight of the one-hot in the target.
        coefficient_start: where its linear warm-up starts.
        coefficient_warmup_epochs: how long that takes; 0 for none.
        coefficient_final: where a linear decay until the last step ends; None for none.
        weights: (lambda, mu, eta) of InfoNCE, ReSSL and Ceil (the paper's Proposition 1), in place of
            ``coefficient``.
        self_similarity: how the positive enters the target's softmax: ``mask`` (paper) or ``zero`` (released code).
        in_batch_negatives: the other keys of the global batch are columns too.
        symmetric: both global views give targets, and both are enqueued.
        momentum: m of the momentum branch at the start.
        momentum_schedule: ``constant``, or ``cosine`` from ``momentum`` to 1.
        shuffle: permute the momentum branch's batch, over all processes, so that BatchNorm statistics do not tell
            a key's query.
        batch_norm_splits: virtual devices of the momentum branch's 2-d BatchNorm (of both branches with
            ``split_online``); 1 for ordinary BatchNorm.
        split_online: see ``batch_norm_splits``.
        seed: of the queue's first rows and of the permutations.

    Raises:
        ValueError: for fewer views than needed or values outside their range.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        *,
        views: Sequence[ViewSpec],
        dim: int,
        predictor: nn.Module | None = None,
        queue_length: int = 65536,
        queue_initial: Literal["random", "empty"] = "random",
        queue_dtype: Literal["float32", "bfloat16"] = "float32",
        temperature: float = 0.1,
        target_temperature: float = 0.05,
        target_temperature_start: float = 0.05,
        target_temperature_warmup_epochs: float = 0.0,
        coefficient: float = 0.5,
        coefficient_start: float = 1.0,
        coefficient_warmup_epochs: float = 0.0,
        coefficient_final: float | None = None,
        weights: tuple[float, float, float] | None = None,
        self_similarity: Literal["mask", "zero"] = "mask",
        in_batch_negatives: bool = False,
        symmetric: bool = False,
        momentum: float = 0.996,
        momentum_schedule: Literal["constant", "cosine"] = "cosine",
        shuffle: bool = True,
        batch_norm_splits: int = 1,
        split_online: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.views = tuple(views)
        num_views = sum(len(view.sizes) for view in self.views)
        if num_views < 2:
            raise ValueError(f"SCE needs at least two views of an image, got {num_views}: add one to `views`")
        for name, value in {
            "temperature": temperature,
            "target_temperature": target_temperature,
            "target_temperature_start": target_temperature_start,
        }.items():
            if value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if weights is not None and (coefficient != 0.5 or coefficient_warmup_epochs or coefficient_final is not None):
            raise ValueError(
                f"weights {weights} take the place of coefficient and its schedule; leave coefficient at 0.5 "
                f"(got {coefficient}), coefficient_warmup_epochs at 0 (got {coefficient_warmup_epochs:g}) and "
                f"coefficient_final at null (got {coefficient_final})"
            )
        for name, value in {"coefficient": coefficient, "momentum": momentum}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {value}")

        self.temperature = temperature
        self.target_temperature = target_temperature
        self.target_temperature_start = target_temperature_start
        self.target_temperature_warmup_epochs = target_temperature_warmup_epochs
        self.coefficient = coefficient
        self.coefficient_start = coefficient_start
        self.coefficient_warmup_epochs = coefficient_warmup_epochs
        self.coefficient_final = coefficient_final
        self.weights = weights
        self.self_similarity = self_similarity
        self.in_batch_negatives = in_batch_negatives
        self.momentum = momentum
        self.momentum_schedule = momentum_schedule

        self.num_targets = 2 if symmetric else 1
        self.online_views = range(0 if symmetric else 1, num_views)

        self.encoder = encoder
        self.projector = projector
        self.predictor = predictor if predictor is not None else nn.Identity()
        self.momentum_branch = MomentumBranch(
            encoder,
            projector,
            shuffle=shuffle,
            batch_norm_splits=batch_norm_splits,
            split_online=split_online,
            seed=seed,
        )
        self.queue = Queue(queue_length, dim, initial=queue_initial, seed=seed, dtype=getattr(torch, queue_dtype))

    def forward(self, views: tuple[Tensor, ...], step: Step) -> StepOutput:
        """The loss of one micro-batch: equation (8) of the paper, averaged over pairs of views.

        Args:
            views: one (n c h w) tensor for each view.
            step: where the training is.
        """
        queries = {view: self._query(views[view]) for view in self.online_views}
        keys = [self.momentum_branch(views[view], step, view) for view in range(self.num_targets)]
        all_keys = [distributed.gather(key) for key in keys]
        losses = []
        for target, (key, batch_keys) in enumerate(zip(keys, all_keys, strict=True)):
            others = torch.stack([queries[view] for view in self.online_views if view != target])
            losses.append(
                sce_loss(
                    others,
                    key,
                    Columns(
                        self.queue.keys,
                        self.queue.valid_length,
                        batch_keys if self.in_batch_negatives else None,
                        distributed.rank() * len(key),
                    ),
                    temperature=self.temperature,
                    target_temperature=self._target_temperature(step),
                    coefficient=self._coefficient(step),
                    weights=self.weights,
                    self_similarity=self.self_similarity,
                )
            )
        loss = torch.stack(losses).mean()  # each over as many pairs
        to_enqueue = torch.cat(all_keys)
        return StepOutput(loss, to_enqueue, self._metrics(queries, keys, len(to_enqueue), step))

    @torch.no_grad()
    def update(self, keys: Tensor, step: Step) -> None:
        """Average the online branch into the momentum branch and enqueue the keys of the step just taken."""
        momentum = self.momentum
        if self.momentum_schedule == "cosine":
            momentum = cosine_schedule(self.momentum, 1.0, step.progress)
        self.momentum_branch.update_(self.encoder, self.projector, momentum)
        self.queue.enqueue_(keys)

    def _query(self, images: Tensor) -> Tensor:
        return unit(self.predictor(self.projector(self.encoder(images))))

    def _target_temperature(self, step: Step) -> float:
        return scalar_schedule(
            self.target_temperature,
            step.index,
            step.total,
            start=self.target_temperature_start,
            warmup_steps=round(self.target_temperature_warmup_epochs * step.steps_per_epoch),
            warmup_shape="cosine",
        )

    def _coefficient(self, step: Step) -> float:
        return scalar_schedule(
            self.coefficient,
            step.index,
            step.total,
            start=self.coefficient_start,
            warmup_steps=round(self.coefficient_warmup_epochs * step.steps_per_epoch),
            final=self.coefficient_final,
        )

    @torch.no_grad()
    def _metrics(self, queries: dict[int, Tensor], keys: list[Tensor], enqueued: int, step: Step) -> dict[str, Tensor]:
        query = queries[self.num_targets - 1 if self.num_targets == 2 else 1]
        negatives = self.queue.keys.shape[0]
        if self.in_batch_negatives:
            negatives += len(keys[0]) * distributed.world_size() - 1
        infonce, ressl, ceil = self.weights or (0.0, 0.0, 0.0)
        chance = log(negatives + 1)
        if self.weights is not None:
            chance = infonce * chance + ressl * log(negatives) + ceil * (chance - log(negatives))
        fill = min(1.0, step.index * enqueued / self.queue.keys.shape[0])
        return {
            "positive_similarity": (query * keys[0]).sum(dim=1).mean(),
            "chance_loss": torch.full((), chance, device=query.device),
            "queue_fill": torch.full((), fill, device=query.device),
        }
