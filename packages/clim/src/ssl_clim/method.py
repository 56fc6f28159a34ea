"""CLIM as a method: its settings, the views it takes, its loss, and how its momentum branch and its queue move."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log
from typing import Literal

import torch
from torch import Tensor, nn

from ssl_clim.loss import clim_loss
from ssl_clim.mixing import Mixture, cutmix, draw_mixtures, mixup
from ssl_core import distributed
from ssl_core.config import refuse_changed
from ssl_core.nn import MomentumBranch, MomentumConfig, Queue, QueueConfig, unit
from ssl_core.train import Step, StepOutput
from ssl_core.views import ViewSpec


@dataclass(frozen=True)
class CLIMConfig:
    """Settings of :class:`CLIM`.

    Attributes:
        mixing: way to mix an image with its partner, ``cutmix`` or ``mixup``; or ``none``: the queries are then the
            image's own, and the partner has no view but its key.
        alpha: parameter of Beta(alpha, alpha), the distribution of each mixture's ratio.
        per_batch: whether one ratio and one box serve all images of a batch.
        ratio: weight of the image's own key with CutMix: the part of its ``area`` that is left, or the ratio as it was
            sampled, ``beta``.
        partner_only: whether, without mixing, a query is attracted to the partner's key alone and not to its image's.
        reduction: way to reduce the loss: ``sum`` over pairs of a query and a key, as in equation (6), or ``mean``.
        temperature: tau, divisor of the similarities.
        queue: past keys, the negatives.
        momentum: moving average of the online branch, which makes the keys.
    """

    mixing: Literal["cutmix", "mixup", "none"] = "cutmix"
    alpha: float = 2.0
    per_batch: bool = False
    ratio: Literal["area", "beta"] = "area"
    partner_only: bool = False
    reduction: Literal["sum", "mean"] = "sum"
    temperature: float = 0.2
    queue: QueueConfig = field(default_factory=QueueConfig)
    momentum: MomentumConfig = field(default_factory=MomentumConfig)

    def __post_init__(self) -> None:
        unused = {
            "cutmix": ("partner_only",),
            "mixup": ("partner_only", "ratio"),
            "none": ("alpha", "per_batch", "ratio"),
        }
        refuse_changed(self, unused[self.mixing], f"with mixing {self.mixing}")
        for name in ("alpha", "temperature"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


class CLIM(nn.Module):
    """Center-wise Local Image Mixture (Li et al., 2020, arXiv 2011.02697).

    An image's views are its queries and, last, its key. Its *partner*, a neighbor of the image, has as many views.
    Each query is mixed with the partner's query in the same place, and attracted to the keys of both.

    A view of several sizes is a query (or a key) at each of them, and every query meets every key. The paper's
    multi-resolution is several sizes of both; its multi-crop is more queries, and smaller ones. While images have no
    partners, as in the first epochs, the method is MoCo v2.

    Args:
        encoder: (n c h w) -> (n f), trained; the backbone that the run exports.
        projector: head after the encoder, (n f) -> (n d).
        config: settings of the method.
        views: views of each image and its partner, in any order; see ``mixing``.
        dim: d, width of the projector's output.
        seed: seed of the queue's initial rows, the permutations and the mixtures.

    Raises:
        ValueError: for views that do not fit ``mixing``.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        config: CLIMConfig,
        *,
        views: Sequence[ViewSpec],
        dim: int,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config = config
        self.name = "CLIM" if any(view.partner for view in views) else "MoCo v2"
        self.views = tuple(views)
        _check_views(self.views, config.mixing)
        self.seed = seed

        self.encoder = encoder
        self.projector = projector
        self.momentum_branch = MomentumBranch(encoder, projector, config.momentum, seed=seed)
        self.queue = Queue(config.queue, dim, seed=seed)

    def forward(self, views: tuple[Tensor, ...], step: Step) -> StepOutput:
        """The loss of one micro-batch: equation (6) of the paper.

        Args:
            views: one (n c h w) tensor for each size of each view; those of the partners may be left out.
            step: place in the training.
        """
        config = self.config
        own, partners = self._of_whom(views)
        queries, ratios = [], []
        for place, sizes in enumerate(own[:-1]):
            for index, images in enumerate(sizes):
                if partners and config.mixing != "none":
                    images, ratio = self._mixed(images, partners[place][index], step, place)
                else:
                    # Without partners both keys are the image's own, and any weight will do.
                    ratio = images.new_full((len(images),), 0.0 if config.partner_only else 0.5)
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
            self.queue.columns(),
            temperature=config.temperature,
            reduction=config.reduction,
        )
        # Each image enters the queue once, at the largest of the resolutions.
        largest = max(range(len(key)), key=lambda index: own[-1][index].shape[-1])
        to_enqueue = distributed.gather(key[largest])
        num_terms = len(query) * len(key) if config.reduction == "sum" else 1
        metrics = {
            "positive_similarity": (query.detach()[:, None] * key).sum(dim=-1).mean(),
            "chance_loss": query.new_full((), num_terms * log(self.queue.length + 1)),
            "queue_fill": self.queue.fill,
        }
        if partners:
            metrics["partner_similarity"] = (key * partner_key).sum(dim=-1).mean()
        return StepOutput(loss, to_enqueue, metrics)

    @torch.no_grad()
    def update(self, keys: Tensor | None, step: Step) -> None:
        """Average the online branch into the momentum branch and enqueue the keys of the step just taken."""
        self.momentum_branch.update_(self.encoder, self.projector, step)
        assert keys is not None, "every forward gives keys"
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
        config = self.config
        rows = torch.arange(len(images)) + distributed.rank() * len(images)
        # One box for all sizes of a view, and another for the next view and micro-batch; beyond 16 of each the
        # same boxes come again, which does no harm.
        stream = (step.micro << 4 | place) & 0xFF

        def drawn(step: Step) -> Tensor:
            mixtures = draw_mixtures(
                self.seed, step.index, rows, alpha=config.alpha, per_batch=config.per_batch, stream=stream
            )
            return torch.cat([mixtures.ratio[:, None], mixtures.center], dim=1)

        ratio_and_center = step.value(drawn, images.device)
        mixtures = Mixture(ratio_and_center[:, 0], ratio_and_center[:, 1:])
        if config.mixing == "mixup":
            return mixup(images, partners, mixtures)
        mixed, kept = cutmix(images, partners, mixtures)
        return mixed, kept if config.ratio == "area" else mixtures.ratio.to(kept)

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
