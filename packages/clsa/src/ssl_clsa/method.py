"""CLSA as a method: which views it takes, its loss, and how its momentum branch and its queue move.

Without strong views, or with all views in InfoNCE, it is MoCo v2 and the other baselines of the paper's table 4.
"""

from collections.abc import Sequence
from math import log
from typing import Literal

import torch
from torch import Tensor, nn

from ssl_clsa.loss import clsa_loss
from ssl_core import distributed
from ssl_core.losses import Columns
from ssl_core.nn import MomentumBranch, Queue, unit
from ssl_core.train import Step, StepOutput
from ssl_core.views import ViewSpec


class CLSA(nn.Module):
    """Contrastive Learning with Stronger Augmentations (Wang and Qi, TPAMI 2022, arXiv 2104.07713).

    View 0 is the key view, which goes to the momentum branch. Views 1 to ``num_weak`` are weak, all others strong; they
    go to the online branch. Weak queries have InfoNCE; strong ones learn the weak ones' distribution over the keys.

    Args:
        encoder: (n c h w) -> (n f); trained, and the backbone that the run exports.
        projector: (n f) -> (n d).
        views: what each image becomes: key view, weak views, strong views.
        dim: d, the width of the projector's output.
        num_weak: weak views.
        strong_loss: of the strong views: ``ddm``, the divergence from the weak ones (distributional divergence
            minimisation); ``contrastive``, InfoNCE as the weak ones'; ``none``, for baselines without strong views.
        temperature: tau, of InfoNCE.
        divergence_temperature: of both sides of the divergence (``clsa_t`` in the released code).
        divergence_weight: beta (``alpha`` in the released code).
        in_batch_negatives: the other keys of the global batch are columns too, as in the released code; the paper has
            the own key and the queue.
        reduction: ``sum`` over views and pairs of views, as in the released code, or their ``mean``.
        detach_target: False lets gradient into the weak queries through the target too; dense, for small queues.
        symmetric: view 1, the first weak view, also gives keys, for which view 0 is the weak query in its place; the
            loss is the mean of both halves, and both views' keys are enqueued.
        queue_length: k, rows of the queue; at least what one step enqueues.
        queue_initial: ``random`` rows that count as keys, as in the released code, or ``empty``.
        queue_dtype: ``bfloat16`` halves the queue; on a GPU the products with it are then bfloat16 too.
        momentum: m of the momentum branch.
        shuffle: permute the momentum branch's batch, over all processes, so that BatchNorm statistics do not tell
            a key's query.
        batch_norm_splits: virtual devices of the momentum branch's 2-d BatchNorm (of both branches with
            ``split_online``); 1 for ordinary BatchNorm.
        split_online: see ``batch_norm_splits``.
        seed: of the queue's first rows and of the permutations.

    Raises:
        ValueError: for views that do not fit the switches, switches without effect, or values outside their range.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        *,
        views: Sequence[ViewSpec],
        dim: int,
        num_weak: int = 1,
        strong_loss: Literal["ddm", "contrastive", "none"] = "ddm",
        temperature: float = 0.2,
        divergence_temperature: float = 0.2,
        divergence_weight: float = 1.0,
        in_batch_negatives: bool = True,
        reduction: Literal["sum", "mean"] = "sum",
        detach_target: bool = True,
        symmetric: bool = False,
        queue_length: int = 65536,
        queue_initial: Literal["random", "empty"] = "random",
        queue_dtype: Literal["float32", "bfloat16"] = "float32",
        momentum: float = 0.999,
        shuffle: bool = True,
        batch_norm_splits: int = 1,
        split_online: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.views = tuple(views)
        num_queries = sum(len(view.sizes) for view in self.views) - 1
        num_strong = num_queries - num_weak
        described = f"`views` has a key view, {num_weak} weak (num_weak) and {num_strong} strong ones"
        if num_weak < 0 or num_strong < 0:
            raise ValueError(f"num_weak must be from 0 to {num_queries}, the views after the key view, got {num_weak}")
        if strong_loss == "none" and num_strong > 0:
            raise ValueError(f"strong_loss 'none' leaves strong views without use: {described}; remove them")
        if strong_loss != "none" and num_strong == 0:
            raise ValueError(f"strong_loss {strong_loss!r} needs strong views: {described}; add some, or take 'none'")
        if num_weak == 0 and (strong_loss != "contrastive" or symmetric):
            raise ValueError(f"strong_loss {strong_loss!r}, symmetric {symmetric} needs weak views: {described}")
        divergence = {
            "divergence_temperature": (divergence_temperature, 0.2),
            "divergence_weight": (divergence_weight, 1.0),
            "detach_target": (detach_target, True),
        }
        for name, (value, default) in divergence.items():
            if strong_loss != "ddm" and value != default:
                raise ValueError(
                    f"{name} {value} has no effect with strong_loss {strong_loss!r}; leave it at {default}"
                )
        if divergence_weight < 0:
            raise ValueError(f"divergence_weight must be at least 0, got {divergence_weight}")
        for name, value in {"temperature": temperature, "divergence_temperature": divergence_temperature}.items():
            if value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be between 0 and 1, got {momentum}")

        # Queries that have InfoNCE.
        self.num_contrastive = num_queries if strong_loss == "contrastive" else num_weak
        self.temperature = temperature
        self.divergence_temperature = divergence_temperature
        self.divergence_weight = divergence_weight
        self.in_batch_negatives = in_batch_negatives
        self.reduction = reduction
        self.detach_target = detach_target
        self.symmetric = symmetric
        self.momentum = momentum

        self.encoder = encoder
        self.projector = projector
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
        """The loss of one micro-batch: line 7 of the paper's algorithm 1.

        Args:
            views: one (n c h w) tensor for each view.
            step: where the training is.
        """
        key_views = range(2 if self.symmetric else 1)
        queries = {view: self._query(views[view]) for view in range(0 if self.symmetric else 1, len(views))}
        keys = [self.momentum_branch(views[view], step, view) for view in key_views]
        all_keys = [distributed.gather(key) for key in keys]
        losses = []
        for view, key, batch_keys in zip(key_views, keys, all_keys, strict=True):
            others = torch.stack([query for other, query in queries.items() if other != view])
            losses.append(
                clsa_loss(
                    others[: self.num_contrastive],
                    others[self.num_contrastive :],
                    key,
                    Columns(
                        self.queue.keys,
                        self.queue.valid_length,
                        batch_keys if self.in_batch_negatives else None,
                        distributed.rank() * len(key),
                    ),
                    temperature=self.temperature,
                    divergence_temperature=self.divergence_temperature,
                    divergence_weight=self.divergence_weight,
                    reduction=self.reduction,
                    detach_target=self.detach_target,
                )
            )
        total, contrastive, divergence = (torch.stack(halves).mean() for halves in zip(*losses, strict=True))
        to_enqueue = torch.cat(all_keys)
        metrics = {
            "contrastive": contrastive.detach(),
            "divergence": divergence.detach(),
            "positive_similarity": (queries[1].detach() * keys[0]).sum(dim=1).mean(),
            "chance_loss": total.new_full((), self._chance_loss(len(views), len(all_keys[0]))),
            "queue_fill": total.new_full((), min(1.0, step.index * len(to_enqueue) / len(self.queue.keys))),
        }
        return StepOutput(total, to_enqueue, metrics)

    @torch.no_grad()
    def update(self, keys: Tensor, step: Step) -> None:
        """Average the online branch into the momentum branch and enqueue the keys of the step just taken."""
        self.momentum_branch.update_(self.encoder, self.projector, self.momentum)
        self.queue.enqueue_(keys)

    def _query(self, images: Tensor) -> Tensor:
        return unit(self.projector(self.encoder(images)))

    def _chance_loss(self, num_views: int, batch_size: int) -> float:
        """Loss of queries that see all keys alike."""
        pairs = self.num_contrastive * (num_views - 1 - self.num_contrastive)
        terms = self.num_contrastive + self.divergence_weight * pairs
        if self.reduction == "mean":
            terms = 1 + self.divergence_weight * (pairs > 0)
        return terms * log(len(self.queue.keys) + (batch_size if self.in_batch_negatives else 1))
