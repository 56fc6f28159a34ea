"""DSSL as a method: the networks of its base, which views meet which, and how a momentum branch and a queue move."""

from collections.abc import Sequence
from math import log

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_core import distributed
from ssl_core.nn import MomentumBranch, Queue, unit
from ssl_core.train import Step, StepOutput
from ssl_core.views import ViewSpec
from ssl_dssl.bases import BYOL, Base, MoCoV2, SimCLR
from ssl_dssl.loss import Embedded, directional_loss


class DSSL(nn.Module):
    """Directional self-supervised learning (Bai et al., CVPR 2022, arXiv 2110.13555) over a base method.

    The standard views come first, in pairs, then the heavy ones. Without heavy views it is the base.

    Args:
        encoder: (n c h w) -> (n f); trained, and the backbone that the run exports.
        projector: (n f) -> (n d).
        base: what is learnt from two views, and its numbers.
        views: what each image becomes.
        dim: d, the width of the projector's output.
        predictor: (n d) -> (n d), for the bases that have one: SimSiam and BYOL.
        sources: for each heavy view, the index of the standard view that it is drawn to; a heavy view that is derived
            comes from that one.
        alpha: weight of the base's loss of standard views.
        beta: weight of the base's loss of two heavy views.
        gamma: weight of heavy predictions against standard targets.
        delta: weight of standard predictions against heavy targets; the four are those of
            :func:`ssl_dssl.directional_loss`.
        seed: of a queue's first rows and of a momentum branch's permutations.

    Raises:
        ValueError: for views that do not fit the sources, weights that do not fit the views, or a predictor that is
            missing or that the base has no use for.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        *,
        base: Base,
        views: Sequence[ViewSpec],
        dim: int,
        predictor: nn.Module | None = None,
        sources: Sequence[int] = (),
        alpha: float = 1.0,
        beta: float = 0.0,
        gamma: float = 1.0,
        delta: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.base = base
        self.views = tuple(views)
        self.sources = tuple(sources)
        self.num_standard = sum(len(view.sizes) for view in self.views) - len(self.sources)
        self.weights = {"alpha": alpha, "beta": beta, "gamma": gamma, "delta": delta}
        self._check_views()
        self._check_weights()
        if (predictor is not None) != base.has_predictor:
            needs = "needs a predictor" if base.has_predictor else "has no predictor"
            raise ValueError(f"{type(base).__name__} {needs}, got {type(predictor).__name__}")
        self._predicted, self._targeted = self._asked_for()

        self.encoder = encoder
        self.projector = projector
        self.predictor = predictor if predictor is not None else nn.Identity()
        if isinstance(base, BYOL):
            self.momentum_branch = MomentumBranch(encoder, projector, shuffle=False)
        if isinstance(base, MoCoV2):
            self.momentum_branch = MomentumBranch(
                encoder,
                projector,
                shuffle=base.shuffle,
                batch_norm_splits=base.batch_norm_splits,
                split_online=base.split_online,
                seed=seed,
            )
            dtype = getattr(torch, base.queue_dtype)
            self.queue = Queue(base.queue_length, dim, initial=base.queue_initial, seed=seed, dtype=dtype)

    def forward(self, views: tuple[Tensor, ...], step: Step) -> StepOutput:
        """The loss of one micro-batch: equation (6) of the paper, each view through the networks by itself.

        Args:
            views: one (n c h w) tensor for each view.
            step: where the training is.
        """
        embedded = [self._embedded(index, images, step) for index, images in enumerate(views)]
        standard, heavy = embedded[: self.num_standard], embedded[self.num_standard :]
        loss = directional_loss(standard, heavy, self._pair_loss, sources=self.sources, **self.weights)
        keys = None
        if isinstance(self.base, MoCoV2):
            keys = torch.cat([distributed.gather(view.target) for view in standard[1::2] if view.target is not None])
        # A predictor's output, where there is one: a projector's own BatchNorm would hide a collapse.
        judged = next(part for view in standard for part in view if part is not None).detach()
        metrics = self._metrics(standard, heavy, len(judged), step)
        return StepOutput(loss, keys, metrics, unit(judged))

    @torch.no_grad()
    def update(self, keys: Tensor | None, step: Step) -> None:
        """Average the online branch into a momentum branch and enqueue the keys of the step just taken."""
        if isinstance(self.base, BYOL | MoCoV2):
            self.momentum_branch.update_(self.encoder, self.projector, self.base.momentum)
        if keys is not None:
            self.queue.enqueue_(keys)

    def _embedded(self, index: int, images: Tensor, step: Step) -> Embedded:
        prediction = target = None
        is_predicted, is_targeted = index in self._predicted, index in self._targeted
        if is_targeted and self.base.has_momentum_branch:
            target = self.momentum_branch(images, step, index)
        if is_predicted or (is_targeted and target is None):
            projection = self.projector(self.encoder(images))
            prediction = self.predictor(projection) if is_predicted else None
            target = projection.detach() if is_targeted and target is None else target
        return Embedded(prediction, target)

    def _pair_loss(self, first: Embedded, second: Embedded) -> Tensor:
        if isinstance(self.base, MoCoV2):
            return self.base.loss(first, second, self.queue)
        return self.base.loss(first, second)

    def _asked_for(self) -> tuple[set[int], set[int]]:
        """Views whose prediction, and views whose target, a term of the loss asks for."""
        standard, heavy = range(self.num_standard), range(self.num_standard, self.num_standard + len(self.sources))
        predicted: set[int] = set()
        targeted: set[int] = set()
        for weight, views in (("alpha", standard), ("beta", heavy)):
            if self.weights[weight]:
                predicted |= set(views if self.base.is_symmetric else views[::2])
                targeted |= set(views if self.base.is_symmetric else views[1::2])
        if self.weights["gamma"]:
            predicted |= set(heavy)
            targeted |= set(self.sources)
        if self.weights["delta"]:
            predicted |= set(self.sources)
            targeted |= set(heavy)
        if isinstance(self.base, MoCoV2):
            targeted |= set(standard[1::2])  # the queue's keys
        return predicted, targeted

    def _check_views(self) -> None:
        if self.num_standard < 2 or self.num_standard % 2:
            raise ValueError(
                f"DSSL takes standard views in pairs, and then {len(self.sources)} heavy ones; "
                f"`views` leaves {self.num_standard} standard ones"
            )
        for source, view in zip(self.sources, self.views[-len(self.sources) :], strict=False):
            if not 0 <= source < self.num_standard or view.derived_from not in (None, source):
                raise ValueError(
                    f"sources: the heavy view {view.name!r} is drawn to view {source}, but it is derived from view "
                    f"{view.derived_from}, and the standard views are 0 to {self.num_standard - 1}"
                )

    def _check_weights(self) -> None:
        for name, weight in self.weights.items():
            if not weight >= 0:
                raise ValueError(f"{name} must be at least 0, got {weight}")
        used = [name for name in ("beta", "delta") if self.weights[name]]
        if used and not self.sources:
            raise ValueError(f"{used[0]} {self.weights[used[0]]:g} is about heavy views, but there are none")
        if self.weights["beta"] and len(self.sources) != 2:
            raise ValueError(f"beta {self.weights['beta']:g} is about two heavy views, but there is one")
        if not (self.weights["alpha"] or (self.sources and (self.weights["gamma"] or any(used)))):
            raise ValueError(f"with {len(self.sources)} heavy views and the weights {self.weights} there is no loss")

    @torch.no_grad()
    def _metrics(
        self, standard: list[Embedded], heavy: list[Embedded], num_images: int, step: Step
    ) -> dict[str, Tensor]:
        pairs = {
            "positive_similarity": (standard[0].prediction, standard[1].target),
            "heavy_similarity": (heavy[0].prediction, standard[self.sources[0]].target) if heavy else (None, None),
        }
        metrics = {
            name: F.cosine_similarity(prediction.float(), target.float()).mean()
            for name, (prediction, target) in pairs.items()
            if prediction is not None and target is not None
        }
        chance = 0.0  # of a cosine
        if isinstance(self.base, SimCLR):
            chance = log(2 * num_images * distributed.world_size() - 1)
        if isinstance(self.base, MoCoV2):
            chance = log(len(self.queue.keys) + 1)
            enqueued = num_images * distributed.world_size() * self.num_standard // 2
            metrics["queue_fill"] = torch.tensor(min(1.0, step.index * enqueued / len(self.queue.keys)))
        if chance:
            metrics["chance_loss"] = torch.tensor((self.weights["alpha"] + self.weights["beta"]) * chance)
        return metrics
