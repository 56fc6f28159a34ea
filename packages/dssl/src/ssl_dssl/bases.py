"""The five base methods under DSSL: what a view is compared with, and the loss of two views.

Each is numbers and a loss; :class:`ssl_dssl.DSSL` has the networks. With two standard views and no heavy ones it
trains the base itself. A configuration names one as ``simsiam`` or, with numbers, ``{mocov2: {temperature: 0.1}}``.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from jaxtyping import Float
from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor

from ssl_core import distributed
from ssl_core.losses import barlow_twins, info_nce, negative_cosine, nt_xent
from ssl_core.nn import MomentumConfig, Queue, QueueConfig, unit
from ssl_dssl.loss import Embedded, given


@dataclass(frozen=True)
class SimCLR:
    """Each view must tell its other view from all other images of the batch, of all processes.

    Paper: Chen et al., 2020, 2002.05709. z = projection; the loss is ``ssl_core.losses.nt_xent``.

    Attributes:
        temperature: tau, divisor of the similarities.
    """

    temperature: float = 0.5

    title: ClassVar[str] = "SimCLR"
    has_predictor: ClassVar[bool] = False
    is_symmetric: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_positive("temperature", self.temperature)

    def loss(self, first: Embedded, second: Embedded) -> Float[Tensor, ""]:
        """NT-Xent of two views, nats."""
        a, b = unit(given(first.prediction)), unit(given(second.prediction))  # (n d)
        if distributed.world_size() == 1:
            return nt_xent(a, b, self.temperature)
        batch = distributed.gather_with_grad(a), distributed.gather_with_grad(b)  # (m d) of all processes
        return nt_xent(a, b, self.temperature, batch=batch, row_offset=distributed.rank() * len(a))


@dataclass(frozen=True)
class SimSiam:
    """A predictor of each view's projection meets the other view's, which receives no gradient.

    L_S = 1/2 [D(z, y') + D(z', y)].  Paper: Chen and He, 2021, eq. (2), 2011.10566. z = predictor of the projection,
    y = projection without gradient.
    """

    title: ClassVar[str] = "SimSiam"
    has_predictor: ClassVar[bool] = True
    is_symmetric: ClassVar[bool] = True

    def loss(self, first: Embedded, second: Embedded) -> Float[Tensor, ""]:
        """Negative cosine of each view's prediction and the other's target, in [-1, 1]."""
        return _symmetric_cosine(first, second)


@dataclass(frozen=True)
class BYOL:
    """As SimSiam, with the projection of a momentum encoder as target.

    Paper: Grill et al., 2020, 2006.07733, whose loss 2 - 2 cos, summed over both views, is 4 + 4 L_S. DSSL's released
    code has the 1/2 of SimSiam, and a constant momentum.

    Attributes:
        momentum: moving average of the online branch, which makes the targets.
    """

    momentum: MomentumConfig = field(default_factory=lambda: MomentumConfig(0.99, shuffle=False))

    title: ClassVar[str] = "BYOL"
    has_predictor: ClassVar[bool] = True
    is_symmetric: ClassVar[bool] = True

    def loss(self, first: Embedded, second: Embedded) -> Float[Tensor, ""]:
        """Negative cosine of each view's prediction and the other's target, in [-1, 1]."""
        return _symmetric_cosine(first, second)


@dataclass(frozen=True)
class MoCoV2:
    """The first view's query must tell the second view's key from a queue of past keys.

    Paper: He et al., 2020, eq. (1), 1911.05722; Chen et al., 2020, 2003.04297. z = projection, y = key.

    Attributes:
        temperature: tau, divisor of the similarities.
        queue: past keys, the negatives.
        momentum: moving average of the online branch, which makes the keys.
    """

    temperature: float = 0.2
    queue: QueueConfig = field(default_factory=QueueConfig)
    momentum: MomentumConfig = field(default_factory=MomentumConfig)

    title: ClassVar[str] = "MoCo v2"
    has_predictor: ClassVar[bool] = False
    is_symmetric: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_positive("temperature", self.temperature)

    def loss(self, first: Embedded, second: Embedded, queue: Queue) -> Float[Tensor, ""]:
        """InfoNCE of the first view's query, nats."""
        query, key = unit(given(first.prediction)), given(second.target)  # (n d)
        return info_nce(query, key, queue.columns(), self.temperature).mean()


@dataclass(frozen=True)
class BarlowTwins:
    """The cross-correlation of two views' projections, over the batch of all processes, must be the identity.

    Paper: Zbontar et al., 2021, eq. (1), 2103.03230. z = projection; the loss is ``ssl_core.losses.barlow_twins``.

    Attributes:
        off_diagonal_weight: lambda, weight of the correlations of different dimensions.
    """

    off_diagonal_weight: float = 0.0051

    title: ClassVar[str] = "Barlow Twins"
    has_predictor: ClassVar[bool] = False
    is_symmetric: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.off_diagonal_weight < 0:
            raise ValueError(f"off_diagonal_weight must be at least 0, got {self.off_diagonal_weight}")

    def loss(self, first: Embedded, second: Embedded) -> Float[Tensor, ""]:
        """Distance of the cross-correlation matrix from the identity."""
        batch = [distributed.gather_with_grad(given(view.prediction)) for view in (first, second)]  # (m d) of all
        return barlow_twins(batch[0], batch[1], off_diagonal_weight=self.off_diagonal_weight)


Base = SimCLR | SimSiam | BYOL | MoCoV2 | BarlowTwins
BASES: dict[str, type[Base]] = {
    "simclr": SimCLR,
    "simsiam": SimSiam,
    "byol": BYOL,
    "mocov2": MoCoV2,
    "barlow": BarlowTwins,
}


def make_base(described: str | dict[str, Any]) -> Base:
    """The base that a configuration describes.

    Args:
        described: name in `BASES`, or ``{name: {setting: value}}``.

    Raises:
        ValueError: for an unknown base or setting, more than one base, or a number outside its range.

    Example:
        >>> make_base({"simclr": {"temperature": 0.1}})
        SimCLR(temperature=0.1)
    """
    named = {described: {}} if isinstance(described, str) else described
    name, settings = next(iter(named.items()), ("", None))
    if len(named) != 1 or name not in BASES:
        raise ValueError(f"base names one of {', '.join(BASES)}, or is {{name: {{setting: value}}}}, got {described}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(BASES[name], name)
    try:
        parsed = parser.instantiate(parser.parse_object({name: settings or {}}))
    except ArgumentError as error:
        raise ValueError(f"base: {error}") from error
    base: Base = parsed[name]
    return base


def _symmetric_cosine(first: Embedded, second: Embedded) -> Tensor:
    one = negative_cosine(given(first.prediction), given(second.target))  # (n)
    other = negative_cosine(given(second.prediction), given(first.target))  # (n)
    return (one.mean() + other.mean()) / 2


def _check_positive(name: str, value: float) -> None:
    if value <= 0:
        raise ValueError(f"{name} must be positive, got {value}")
