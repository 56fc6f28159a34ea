"""Train DSSL, or one of its base methods, on a folder of images.

ssl-dssl-train --config list
ssl-dssl-train --config cifar10 --data.root data --out runs/cifar10
ssl-dssl-train --config cifar10 --data.root data --method.heavy none
ssl-dssl-train --config imagenet --data.source images/train --method.heavy '[ra_2_5, jigsaw_4]'
ssl-dssl-train --resume runs/cifar10
torchrun --nproc-per-node 8 -m ssl_dssl.train --config imagenet --data.root data
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal, get_args

from torch import nn

from ssl_core.nn import HeadConfig, mlp_head
from ssl_core.pretrain import PretrainConfig, check_batch, run_command
from ssl_core.views import ViewSpec, make_ops, make_view_specs
from ssl_core.views.config import Augmentation
from ssl_dssl.bases import BYOL, BarlowTwins, Base, MoCoV2, SimCLR, SimSiam
from ssl_dssl.method import DSSL
from ssl_dssl.views import heavier, partially_ordered_views

BaseName = Literal["simclr", "simsiam", "byol", "mocov2", "barlow"]
BASES: dict[str, type[Base]] = dict(zip(get_args(BaseName), (SimCLR, SimSiam, BYOL, MoCoV2, BarlowTwins), strict=True))

_WEIGHTS = ("alpha", "beta", "gamma", "delta")


@dataclass(frozen=True)
class DSSLConfig:
    """What :class:`ssl_dssl.DSSL` takes, with its heads and its heavy views described.

    Attributes:
        base: ``simclr``, ``simsiam``, ``byol``, ``mocov2`` or ``barlow``.
        projector: the head after the encoder.
        predictor_dim: width of the predictor's hidden layer, of simsiam and byol; null is a quarter of the projector's
            output for simsiam, and the projector's own hidden width for byol.
        heavy: what is done to a standard view to make it heavy: a name or a list of names and ops, as an augmentation
            of ``views``; ``none`` trains the base alone.
        heavy_source: heavy views are ``derived`` from the standard views, or made of the whole ``image``, or of
            ``independent`` standard views.
        heavy_per_image: 2, or 1, of the second standard view: for simclr, mocov2 and barlow.
        naive: ``views`` makes every view heavy and learns with the base's loss; ``all_pairs`` gives all terms of
            eq. (6) the weight 1; ``none`` is directional.
        alpha: weight of the base's loss of standard views.
        beta: of the base's loss of heavy views.
        gamma: of heavy predictions against standard targets.
        delta: of standard predictions against heavy targets.
        pairs: pairs of views of an image where the base learns alone; null is the paper's fair comparison: 2 for
            simsiam and byol, as many forwards as with heavy views, and 1 for the others.
        temperature: of simclr and mocov2. This and what follows belongs to some bases only; null is the base's own
            default, see there.
        momentum: of byol and mocov2.
        off_diagonal_weight: of barlow.
        queue_length: of mocov2, as what follows.
        queue_initial: see :class:`ssl_dssl.MoCoV2`.
        queue_dtype: see there.
        shuffle: see there.
        batch_norm_splits: see there.
        split_online: see there.
    """

    base: BaseName = "simsiam"
    projector: HeadConfig = field(default_factory=HeadConfig)
    predictor_dim: int | None = None
    heavy: Augmentation = "none"
    heavy_source: Literal["derived", "image", "independent"] = "derived"
    heavy_per_image: Literal[1, 2] = 2
    naive: Literal["none", "views", "all_pairs"] = "none"
    alpha: float = 1.0
    beta: float = 0.0
    gamma: float = 1.0
    delta: float = 0.0
    pairs: Literal[1, 2] | None = None
    temperature: float | None = None
    momentum: float | None = None
    off_diagonal_weight: float | None = None
    queue_length: int | None = None
    queue_initial: Literal["random", "empty"] | None = None
    queue_dtype: Literal["float32", "bfloat16"] | None = None
    shuffle: bool | None = None
    batch_norm_splits: int | None = None
    split_online: bool | None = None

    @property
    def sources(self) -> tuple[int, ...]:
        """For each heavy view, the standard view that it is drawn to."""
        if self.heavy == "none" or self.naive == "views":
            return ()
        return (0, 1) if self.heavy_per_image == 2 else (1,)

    @property
    def weights(self) -> dict[str, float]:
        """Alpha, beta, gamma and delta of eq. (6)."""
        return dict.fromkeys(_WEIGHTS, 1.0) if self.naive == "all_pairs" else {w: getattr(self, w) for w in _WEIGHTS}


@dataclass(frozen=True, kw_only=True)
class Config(PretrainConfig):
    """The configuration of a run; ``views`` are the two standard views, to which ``method`` adds the heavy ones."""

    method: DSSLConfig = field(default_factory=DSSLConfig)

    def view_specs(self) -> tuple[ViewSpec, ...]:
        """The standard views, then the heavy ones."""
        method, standard = self.method, make_view_specs(self.views)
        if len(standard) != 2 or any(len(view.sizes) > 1 or view.derived_from is not None for view in standard):
            raise ValueError(
                "views: DSSL takes two standard views, each of one size and with draws of its own, got "
                f"{[(view.name, view.sizes, view.derived_from) for view in standard]}"
            )
        if any(view.partner for view in standard):
            raise ValueError("views: partner true, but DSSL has no partners")
        _check_switches(method)
        if method.sources:
            heavy = make_ops(method.heavy)
            return partially_ordered_views(standard, heavy, source=method.heavy_source, sources=method.sources)
        if method.naive == "views":
            standard = tuple(heavier(view, make_ops(method.heavy)) for view in standard)
        return standard * (method.pairs or (2 if BASES[method.base].has_predictor else 1))


def make_method(config: Config, encoder: nn.Module, num_features: int, views: tuple[ViewSpec, ...]) -> DSSL:
    """The method that a configuration describes, around an encoder with ``num_features`` outputs."""
    method, projector = config.method, config.method.projector
    base = make_base(method)
    if isinstance(base, MoCoV2):
        check_batch(
            config.train,
            queue_length=base.queue_length,
            keys_per_image=1,
            batch_norm_splits=base.batch_norm_splits,
        )
    if isinstance(base, SimCLR | BarlowTwins) and config.train.accumulate > 1:
        raise ValueError(
            f"train.accumulate {config.train.accumulate}: {method.base} compares the images that are forwarded at "
            "once; use 1 and a batch that fits"
        )
    predictor = None
    if base.has_predictor:
        own_dim = projector.hidden_dim if isinstance(base, BYOL) else max(1, projector.out_dim // 4)
        hidden_dim = own_dim if method.predictor_dim is None else method.predictor_dim
        if hidden_dim < 1:
            raise ValueError(f"method.predictor_dim must be at least 1, got {hidden_dim}")
        predictor = mlp_head(projector.out_dim, hidden_dim, projector.out_dim)
    return DSSL(
        encoder,
        mlp_head(num_features, **vars(projector)),
        base=base,
        views=views,
        dim=projector.out_dim,
        predictor=predictor,
        sources=method.sources,
        seed=config.seed,
        **method.weights,
    )


def make_base(method: DSSLConfig) -> Base:
    """The base that a configuration names, with the numbers that it gives.

    Raises:
        ValueError: for a number that the base has no use for.
    """
    base = BASES[method.base]
    own = {each.name for each in fields(base)}
    numbers = {each.name for other in BASES.values() for each in fields(other)}
    given = {name: getattr(method, name) for name in sorted(numbers) if getattr(method, name) is not None}
    if not base.has_predictor and method.predictor_dim is not None:
        given["predictor_dim"] = method.predictor_dim
    foreign = [f"method.{name} {value}" for name, value in given.items() if name not in own]
    if foreign:
        raise ValueError(f"{', '.join(foreign)} without effect with base {method.base}: leave at null")
    return base(**given)


def _check_switches(method: DSSLConfig) -> None:
    """Refuse switches that would have no effect, or that the base does not have."""
    unused: tuple[str, ...]
    if method.heavy == "none":
        unused, when = ("naive", "heavy_source", "heavy_per_image", *_WEIGHTS), "with heavy none"
    elif method.naive == "views":
        unused, when = ("heavy_source", "heavy_per_image", *_WEIGHTS), "with naive views"
    elif method.naive == "all_pairs":
        unused, when = (*_WEIGHTS, "heavy_per_image", "pairs"), "with naive all_pairs"
    else:
        unused, when = ("pairs",), "with heavy views"
    for name in unused:
        value, default = getattr(method, name), getattr(DSSLConfig(), name)
        if value != default:
            default = "null" if default is None else default
            raise ValueError(f"method.{name} {value} has no effect {when}; leave it at {default}")
    has_predictor = BASES[method.base].has_predictor
    if has_predictor and method.heavy_per_image == 1:
        raise ValueError(f"method.heavy_per_image 1 is for simclr, mocov2 and barlow; {method.base} takes 2")
    if not has_predictor and method.pairs == 2:
        raise ValueError(f"method.pairs 2 is for simsiam and byol; {method.base} takes 1")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command ``ssl-dssl-train``."""
    run_command(
        Config,
        make_method,
        arguments,
        prog="ssl-dssl-train",
        description="Pretrain an image encoder with DSSL over SimCLR, SimSiam, BYOL, MoCo v2 or Barlow Twins.",
        recipes=Path(__file__).parent / "recipes",
    )


if __name__ == "__main__":
    main()
