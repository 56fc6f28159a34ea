"""DSSL as a method: its settings, the networks of its base, which views meet which, and how its state moves."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import log
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_core import distributed
from ssl_core.config import refuse_changed
from ssl_core.nn import MomentumBranch, Queue, unit
from ssl_core.train import Step, StepOutput
from ssl_core.views import ViewSpec
from ssl_core.views.config import Augmentation
from ssl_dssl.bases import BYOL, MoCoV2, SimCLR, make_base
from ssl_dssl.loss import Embedded, directional_loss

_WEIGHTS = ("alpha", "beta", "gamma", "delta")


@dataclass(frozen=True)
class DSSLConfig:
    """Settings of :class:`DSSL`.

    Attributes:
        base: method that learns from two views, given by its name, with or without settings, see
            :func:`ssl_dssl.make_base`; kept with all its settings.
        heavy: augmentation that makes a standard view heavy: a name or a list of names and ops, as in an augmentation
            of ``views``; ``none`` trains the base alone.
        heavy_source: origin of the heavy views: ``derived`` from the standard views, made of the whole ``image``, or
            of ``independent`` standard views.
        heavy_per_image: number of heavy views of an image: 2; or 1, of the second standard view, for simclr, mocov2
            and barlow.
        naive: alternative to the directional loss: ``views`` makes every view heavy and learns with the base's loss;
            ``all_pairs`` gives all terms of eq. (6) the weight 1; ``none`` is directional.
        alpha: weight of the base's loss of standard views.
        beta: weight of the base's loss of heavy views.
        gamma: weight of heavy predictions against standard targets.
        delta: weight of standard predictions against heavy targets.
        pairs: number of pairs of views of an image where the base learns alone. None is the paper's fair comparison:
            2 for simsiam and byol, which take as many forwards as with heavy views, and 1 for the others.
    """

    base: str | dict[str, Any] = "simsiam"
    heavy: Augmentation = "none"
    heavy_source: Literal["derived", "image", "independent"] = "derived"
    heavy_per_image: Literal[1, 2] = 2
    naive: Literal["none", "views", "all_pairs"] = "none"
    alpha: float = 1.0
    beta: float = 0.0
    gamma: float = 1.0
    delta: float = 0.0
    pairs: Literal[1, 2] | None = None

    def __post_init__(self) -> None:
        base = make_base(self.base)
        [name] = [self.base] if isinstance(self.base, str) else self.base
        # With all numbers, so that a run's config.yaml says them.
        object.__setattr__(self, "base", {name: asdict(base)})
        if self.heavy == "none":
            refuse_changed(self, ("naive", "heavy_source", "heavy_per_image", *_WEIGHTS), "with heavy none")
        elif self.naive == "views":
            refuse_changed(self, ("heavy_source", "heavy_per_image", *_WEIGHTS), "with naive views")
        elif self.naive == "all_pairs":
            refuse_changed(self, (*_WEIGHTS, "heavy_per_image", "pairs"), "with naive all_pairs")
        else:
            refuse_changed(self, ("pairs",), "with heavy views")
        if base.has_predictor and self.heavy_per_image == 1:
            raise ValueError(f"heavy_per_image 1 is for simclr, mocov2 and barlow; {name} takes 2")
        if not base.has_predictor and self.pairs == 2:
            raise ValueError(f"pairs 2 is for simsiam and byol; {name} takes 1")
        for weight, value in self.weights.items():
            if not value >= 0:
                raise ValueError(f"{weight} must be at least 0, got {value}")
        if self.beta and self.heavy_per_image == 1:
            raise ValueError(f"beta {self.beta:g} is about two heavy views, but heavy_per_image is 1")
        if not any(self.weights.values()):
            raise ValueError(f"with the weights {self.weights} there is no loss")

    @property
    def sources(self) -> tuple[int, ...]:
        """For each heavy view, the standard view that it is attracted to."""
        if self.heavy == "none" or self.naive == "views":
            return ()
        return (0, 1) if self.heavy_per_image == 2 else (1,)

    @property
    def weights(self) -> dict[str, float]:
        """Alpha, beta, gamma and delta of eq. (6)."""
        return dict.fromkeys(_WEIGHTS, 1.0) if self.naive == "all_pairs" else {w: getattr(self, w) for w in _WEIGHTS}


class DSSL(nn.Module):
    """Directional self-supervised learning (Bai et al., CVPR 2022, arXiv 2110.13555) over a base method.

    The standard views come first, in pairs, then the heavy ones. Without heavy views it is the base.

    Args:
        encoder: (n c h w) -> (n f), trained; the backbone that the run exports.
        projector: head after the encoder, (n f) -> (n d).
        config: settings of the method.
        views: views of each image; a heavy view that is derived comes from the standard view that it is attracted
            to.
        dim: d, width of the projector's output.
        predictor: head after the projector, (n d) -> (n d), for the bases that have one: SimSiam and BYOL.
        seed: seed of a queue's initial rows and of a momentum branch's permutations.

    Raises:
        ValueError: for views that do not fit the settings, or a predictor that is missing or that the base has no use
            for.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        config: DSSLConfig,
        *,
        views: Sequence[ViewSpec],
        dim: int,
        predictor: nn.Module | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.base = base = make_base(config.base)
        self.views = tuple(views)
        self.sources, self.weights = config.sources, config.weights
        self.num_standard = sum(len(view.sizes) for view in self.views) - len(self.sources)
        self._check_views()
        if (predictor is not None) != base.has_predictor:
            needs = "needs a predictor" if base.has_predictor else "has no predictor"
            raise ValueError(f"{type(base).__name__} {needs}, got {type(predictor).__name__}")
        self._predicted, self._targeted = self._asked_for()
        kind = {"none": "DSSL", "views": "naive DSSL", "all_pairs": "DSSL with all pairs"}[config.naive]
        self.name = base.title if config.heavy == "none" else f"{kind} over {base.title}"

        self.encoder = encoder
        self.projector = projector
        self.predictor = predictor if predictor is not None else nn.Identity()
        if isinstance(base, BYOL | MoCoV2):
            self.momentum_branch = MomentumBranch(encoder, projector, base.momentum, seed=seed)
        if isinstance(base, MoCoV2):
            self.queue = Queue(base.queue, dim, seed=seed)

    def forward(self, views: tuple[Tensor, ...], step: Step) -> StepOutput:
        """The loss of one micro-batch: equation (6) of the paper, each view through the networks by itself.

        Args:
            views: one (n c h w) tensor for each view.
            step: place in the training.
        """
        embedded = [self._embedded(index, images, step) for index, images in enumerate(views)]
        standard, heavy = embedded[: self.num_standard], embedded[self.num_standard :]
        loss = directional_loss(standard, heavy, self._pair_loss, sources=self.sources, **self.weights)
        keys = None
        if isinstance(self.base, MoCoV2):
            keys = torch.cat([distributed.gather(view.target) for view in standard[1::2] if view.target is not None])
        # A predictor's output, where there is one: a projector's own BatchNorm would hide a collapse.
        judged = next(part for view in standard for part in view if part is not None).detach()
        metrics = self._metrics(standard, heavy, len(judged))
        return StepOutput(loss, keys, metrics, unit(judged))

    @torch.no_grad()
    def update(self, keys: Tensor | None, step: Step) -> None:
        """Average the online branch into a momentum branch and enqueue the keys of the step just taken."""
        if isinstance(self.base, BYOL | MoCoV2):
            self.momentum_branch.update_(self.encoder, self.projector, step)
        if keys is not None:
            self.queue.enqueue_(keys)

    def _embedded(self, index: int, images: Tensor, step: Step) -> Embedded:
        prediction = target = None
        is_predicted, is_targeted = index in self._predicted, index in self._targeted
        if is_targeted and isinstance(self.base, BYOL | MoCoV2):
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
            if view.derived_from not in (None, source):
                raise ValueError(
                    f"the heavy view {view.name!r} is attracted to view {source}, but it is derived from view "
                    f"{view.derived_from}"
                )

    @torch.no_grad()
    def _metrics(self, standard: list[Embedded], heavy: list[Embedded], num_images: int) -> dict[str, Tensor]:
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
            chance = log(self.queue.length + 1)
            metrics["queue_fill"] = self.queue.fill
        if chance:
            metrics["chance_loss"] = torch.tensor((self.weights["alpha"] + self.weights["beta"]) * chance)
        return metrics
