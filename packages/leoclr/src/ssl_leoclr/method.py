"""LeOCLR as a method: which views it takes, its loss, and how its momentum branch and its queue move.

With two views it is its baseline: MoCo v2, or SimCLR end to end.
"""

from collections.abc import Sequence
from math import log
from typing import Literal

import torch
from torch import Tensor, nn

from ssl_core import distributed
from ssl_core.losses import Columns, nt_xent
from ssl_core.nn import MomentumBranch, Queue, unit
from ssl_core.train import Step, StepOutput
from ssl_core.views import RandomCrop, RandomResizedCrop, ViewSpec
from ssl_leoclr.loss import leoclr_loss


class LeOCLR(nn.Module):
    """Leveraging Original Images for Contrastive Learning (Alkhalefi et al., TMLR 2024, arXiv 2403.06813).

    View 0 is the anchor, the whole image; views 1 and 2 are crops of it. Both crops are attracted to the anchor. With
    two views the second is attracted to the first, which is MoCo v2 or SimCLR if both are crops.

    Args:
        encoder: (n c h w) -> (n f); trained, and the backbone that the run exports.
        projector: (n f) -> (n d).
        views: what each image becomes: the anchor and two crops, or two views for a baseline.
        dim: d, the width of the projector's output.
        framework: ``moco``, with a momentum branch for the crops and a queue of negatives; or ``simclr``, where all
            views go through the one trained encoder and each pair of views has SimCLR's loss over the batch.
        anchor: ``full`` if view 0 is the whole image, ``random_crop`` if it is cut at random as the others are;
            checked against ``views``.
        attract: ``anchor`` attracts the crops to the anchor alone, ``all`` to each other as well.
        temperature: tau.
        queue_length: k, rows of the queue; at least what one step enqueues. This and what follows but ``seed`` is of
            ``moco`` alone.
        queue_initial: ``random`` rows that count as keys, as in MoCo's code, or ``empty``.
        queue_dtype: of the queue's rows.
        enqueue: the keys of the ``first`` crop, or those of ``both``.
        momentum: m of the momentum branch.
        shuffle: permute the momentum branch's batch, over all processes, each crop's in its own order, so that
            BatchNorm statistics do not tell a key's query.
        batch_norm_splits: virtual devices of the momentum branch's 2-d BatchNorm (of both branches with
            ``split_online``); 1 for ordinary BatchNorm.
        split_online: see ``batch_norm_splits``.
        seed: of the queue's first rows and of the permutations.

    Raises:
        ValueError: for views that do not fit the switches, or values outside their range.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        *,
        views: Sequence[ViewSpec],
        dim: int,
        framework: Literal["moco", "simclr"] = "moco",
        anchor: Literal["full", "random_crop"] = "full",
        attract: Literal["anchor", "all"] = "anchor",
        temperature: float = 0.2,
        queue_length: int = 65536,
        queue_initial: Literal["random", "empty"] = "random",
        queue_dtype: Literal["float32", "bfloat16"] = "float32",
        enqueue: Literal["first", "both"] = "first",
        momentum: float = 0.999,
        shuffle: bool = True,
        batch_norm_splits: int = 1,
        split_online: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.views = tuple(views)
        self.num_crops = sum(len(view.sizes) for view in self.views) - 1
        if self.num_crops not in (1, 2):
            raise ValueError(
                "LeOCLR takes three views, the anchor and two crops, or two for its baseline; "
                f"`views` has {self.num_crops + 1}"
            )
        is_cut = any(isinstance(op, RandomResizedCrop | RandomCrop) for op in self.views[0].ops)
        if is_cut != (anchor == "random_crop"):
            raise ValueError(
                f"anchor {anchor!r}, but the first of `views`, {self.views[0].name!r}, "
                f"is {'cut at random' if is_cut else 'the whole image'}: change one of the two"
            )
        for name, value in {"attract": attract, "enqueue": enqueue}.items():
            if self.num_crops == 1 and value in ("all", "both"):
                raise ValueError(f"{name} {value!r} is about two crops, but `views` has one beside the anchor")
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be between 0 and 1, got {momentum}")
        self.framework = framework
        self.attract = attract
        self.temperature = temperature
        self.enqueue = enqueue
        self.momentum = momentum

        self.encoder = encoder
        self.projector = projector
        if framework == "moco":
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
        """The loss of one micro-batch: equation (3) of the paper.

        Args:
            views: one (n c h w) tensor for each view.
            step: where the training is.
        """
        return self._against_queue(views, step) if self.framework == "moco" else self._against_batch(views)

    @torch.no_grad()
    def update(self, keys: Tensor | None, step: Step) -> None:
        """Average the online branch into the momentum branch and enqueue the keys of the step just taken."""
        if keys is not None:
            self.momentum_branch.update_(self.encoder, self.projector, self.momentum)
            self.queue.enqueue_(keys)

    def _against_queue(self, views: tuple[Tensor, ...], step: Step) -> StepOutput:
        columns = Columns(self.queue.keys, self.queue.valid_length)
        anchor, *crops = views
        query = self._query(anchor)
        keys = torch.stack([self.momentum_branch(crop, step, view) for view, crop in enumerate(crops)])
        loss = leoclr_loss(query, keys, columns, temperature=self.temperature)
        if self.attract == "all":
            for crop, key in zip(crops, keys.flip(0), strict=True):
                loss = loss + leoclr_loss(self._query(crop), key[None], columns, temperature=self.temperature)
        to_enqueue = torch.cat([distributed.gather(key) for key in (keys if self.enqueue == "both" else keys[:1])])
        num_terms = self.num_crops * (2 if self.attract == "all" else 1)
        queue_length = len(self.queue.keys)
        metrics = {
            "positive_similarity": (query.detach() * keys).sum(dim=-1).mean(),
            "chance_loss": query.new_full((), num_terms * log(queue_length + 1)),
            "queue_fill": query.new_full((), min(1.0, step.index * len(to_enqueue) / queue_length)),
        }
        return StepOutput(loss, to_enqueue, metrics)

    def _against_batch(self, views: tuple[Tensor, ...]) -> StepOutput:
        queries = [self._query(view) for view in views]
        is_alone = distributed.world_size() == 1
        gathered = [query if is_alone else distributed.gather_with_grad(query) for query in queries]
        row_offset = distributed.rank() * len(queries[0])
        pairs = [(0, crop) for crop in range(1, len(views))]
        if self.attract == "all":
            pairs.append((1, 2))
        # A pair sees the rows of its own two views alone, so that no crop is a negative of its image's other crop.
        losses = [
            nt_xent(
                queries[a],
                queries[b],
                self.temperature,
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
