"""CLIM as a method: which views it takes, its loss, and how its momentum branch and its queue move."""

from collections.abc import Sequence
from math import log
from typing import Literal

import torch
from torch import Tensor, nn

from ssl_clim.loss import clim_loss
from ssl_clim.mixing import cutmix, draw_mixtures, mixup
from ssl_core import distributed
from ssl_core.losses import Columns
from ssl_core.nn import MomentumBranch, Queue, unit
from ssl_core.train import Step, StepOutput
from ssl_core.views import ViewSpec


class CLIM(nn.Module):
    """Center-wise Local Image Mixture (Li et al., 2020, arXiv 2011.02697).

    An image's views are its queries and, last, its key. A neighbour, its *partner*, has as many: each query is mixed
    with the partner's query of the same place, and attracted to both keys. A view of several sizes is a query (or a
    key) at each of them, and every query meets every key: several resolutions are so many sizes of both, multi-crop
    is more and smaller queries. While images have no partners (the first epochs, say) it is MoCo v2.

    Args:
        encoder: (n c h w) -> (n f); trained, and the backbone that the run exports.
        projector: (n f) -> (n d).
        views: what each image and its partner become, in any order; see ``mixing``.
        dim: d, the width of the projector's output.
        mixing: ``cutmix`` or ``mixup``; or ``none``, where the queries are the image's own and the partner has no
            view but its key.
        alpha: of Beta(alpha, alpha), from which each mixture's ratio is drawn.
        per_batch: draw one ratio and one box for all images of a batch.
        ratio: the weight of the image's own key with CutMix: the ``area`` of it that is left, or the ratio as drawn,
            ``beta``.
        partner_only: without mixing, attract the query to the partner's key alone and not to its own as well.
        reduction: over pairs of a query and a key: ``sum``, as in equation (6), or ``mean``.
        temperature: tau.
        queue_length: k, rows of the queue; at least what one step enqueues.
        queue_initial: ``random`` rows that count as keys, as in MoCo's code, or ``empty``.
        queue_dtype: of the queue's rows.
        momentum: m of the momentum branch.
        shuffle: permute the momentum branch's batch, over all processes, each key's in its own order, so that
            BatchNorm statistics do not tell a key's query.
        batch_norm_splits: virtual devices of the momentum branch's 2-d BatchNorm (of both branches with
            ``split_online``); 1 for ordinary BatchNorm.
        split_online: see ``batch_norm_splits``.
        seed: of the queue's first rows, of the permutations and of the mixtures.

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
        mixing: Literal["cutmix", "mixup", "none"] = "cutmix",
        alpha: float = 2.0,
        per_batch: bool = False,
        ratio: Literal["area", "beta"] = "area",
        partner_only: bool = False,
        reduction: Literal["sum", "mean"] = "sum",
        temperature: float = 0.2,
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
        _check_views(self.views, mixing)
        if mixing != "none" and partner_only:
            raise ValueError(f"partner_only is for queries that are not mixed; mixing is {mixing!r}")
        if mixing == "none" and (alpha != 2.0 or per_batch):
            raise ValueError(
                f"alpha {alpha} and per_batch {per_batch} have no effect with mixing 'none'; leave them out"
            )
        if mixing != "cutmix" and ratio != "area":
            raise ValueError(f"ratio {ratio!r} has no effect with mixing {mixing!r}; leave it at 'area'")
        if alpha <= 0:
            raise ValueError(f"alpha must be positive, got {alpha}")
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be between 0 and 1, got {momentum}")
        self.mixing = mixing
        self.alpha = alpha
        self.per_batch = per_batch
        self.ratio = ratio
        self.partner_only = partner_only
        self.reduction = reduction
        self.temperature = temperature
        self.momentum = momentum
        self.seed = seed

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
        """The loss of one micro-batch: equation (6) of the paper.

        Args:
            views: one (n c h w) tensor for each size of each view; those of partners may be left out.
            step: where the training is.
        """
        own, partners = self._of_whom(views)
        queries, ratios = [], []
        for place, sizes in enumerate(own[:-1]):
            for index, images in enumerate(sizes):
                if partners and self.mixing != "none":
                    images, ratio = self._mixed(images, partners[place][index], step, place)
                else:
                    # Without partners both keys are the image's own, and any weight will do.
                    ratio = images.new_full((len(images),), 0.0 if self.partner_only else 0.5)
                queries.append(self._query(images))
                ratios.append(ratio)
        query, ratio = torch.stack(queries), torch.stack(ratios)
        key = self._keys(own[-1], step, 0)
        partner_key = self._keys(partners[-1], step, len(key)) if partners else key
        loss = clim_loss(
            query,
            key,
            partner_key,
            ratio.to(query.dtype),
            Columns(self.queue.keys, self.queue.valid_length),
            temperature=self.temperature,
            reduction=self.reduction,
        )
        # Each image enters the queue once, at the largest of the resolutions.
        largest = max(range(len(key)), key=lambda index: own[-1][index].shape[-1])
        to_enqueue = distributed.gather(key[largest])
        queue_length = len(self.queue.keys)
        num_terms = len(query) * len(key) if self.reduction == "sum" else 1
        metrics = {
            "positive_similarity": (query.detach()[:, None] * key).sum(dim=-1).mean(),
            "chance_loss": query.new_full((), num_terms * log(queue_length + 1)),
            "queue_fill": query.new_full((), min(1.0, step.index * len(to_enqueue) / queue_length)),
        }
        if partners:
            metrics["partner_similarity"] = (key * partner_key).sum(dim=-1).mean()
        return StepOutput(loss, to_enqueue, metrics)

    @torch.no_grad()
    def update(self, keys: Tensor, step: Step) -> None:
        """Average the online branch into the momentum branch and enqueue the keys of the step just taken."""
        self.momentum_branch.update_(self.encoder, self.projector, self.momentum)
        self.queue.enqueue_(keys)

    def _of_whom(self, views: tuple[Tensor, ...]) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
        """The tensors of each view at its sizes: of the images, and of their partners, where they have any."""
        has_partners = len(views) == sum(len(spec.sizes) for spec in self.views)
        tensors = iter(views)
        own: list[list[Tensor]] = []
        partners: list[list[Tensor]] = []
        for spec in self.views:
            if has_partners or not spec.partner:
                (partners if spec.partner else own).append([next(tensors) for _ in spec.sizes])
        return own, partners

    def _mixed(self, images: Tensor, partners: Tensor, step: Step, place: int) -> tuple[Tensor, Tensor]:
        """Mixed images, and how much of each is its own."""
        rows = torch.arange(len(images)) + distributed.rank() * len(images)
        # One box for all sizes of a view, and another for the next view and micro-batch; beyond 16 of each the
        # same boxes come again, which does no harm.
        stream = (step.micro << 4 | place) & 0xFF
        mixtures = draw_mixtures(self.seed, step.index, rows, alpha=self.alpha, per_batch=self.per_batch, stream=stream)
        if self.mixing == "mixup":
            return mixup(images, partners, mixtures)
        mixed, kept = cutmix(images, partners, mixtures)
        return mixed, kept if self.ratio == "area" else mixtures.ratio.to(kept)

    def _keys(self, sizes: Sequence[Tensor], step: Step, first: int) -> Tensor:
        return torch.stack([self.momentum_branch(images, step, first + index) for index, images in enumerate(sizes)])

    def _query(self, images: Tensor) -> Tensor:
        return unit(self.projector(self.encoder(images)))


def _check_views(views: Sequence[ViewSpec], mixing: str) -> None:
    """Check that the partner has the views that the image's are mixed with and compared to."""
    own, partners = ([spec.sizes for spec in views if spec.partner == of_partner] for of_partner in (False, True))
    if len(own) < 2:
        raise ValueError(
            f"CLIM takes at least two views of an image, its queries and last its key; `views` has {len(own)}"
        )
    expected = own[-1:] if mixing == "none" else own
    if partners and partners != expected:
        raise ValueError(
            f"with mixing {mixing!r} the partner's views have the sizes {expected}, as those of the image "
            f"({'its key' if mixing == 'none' else 'its queries and its key'}), but `views` has {partners}"
        )
