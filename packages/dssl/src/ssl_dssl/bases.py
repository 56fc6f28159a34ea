"""The five base methods under DSSL: what a view is compared with, and the loss of two views.

Each is numbers and a loss; :class:`ssl_dssl.DSSL` has the networks. With two standard views and no heavy ones it
trains the base itself.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from ssl_core import distributed
from ssl_core.losses import Columns, barlow_twins, info_nce, negative_cosine, nt_xent
from ssl_core.nn import Queue, unit
from ssl_dssl.loss import Embedded, given


@dataclass(frozen=True)
class SimCLR:
    """Each view must tell its other view from all other images of the batch, of all processes.

    Paper: Chen et al., 2020, 2002.05709. z = projection; the loss is ``ssl_core.losses.nt_xent``.

    Args:
        temperature: tau, > 0.
    """

    temperature: float = 0.5

    has_predictor: ClassVar[bool] = False
    has_momentum_branch: ClassVar[bool] = False
    is_symmetric: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_positive("temperature", self.temperature)

    def loss(self, first: Embedded, second: Embedded) -> Float[Tensor, ""]:
        """NT-Xent of two views, nats."""
        a, b = unit(given(first.prediction)), unit(given(second.prediction))
        if distributed.world_size() == 1:
            return nt_xent(a, b, self.temperature)
        batch = distributed.gather_with_grad(a), distributed.gather_with_grad(b)
        return nt_xent(a, b, self.temperature, batch=batch, row_offset=distributed.rank() * len(a))


@dataclass(frozen=True)
class SimSiam:
    """A predictor of each view's projection meets the other view's, which receives no gradient.

    L_S = 1/2 [D(z, y') + D(z', y)].  Paper: Chen and He, 2021, eq. (2), 2011.10566. z = predictor of the projection,
    y = projection without gradient.
    """

    has_predictor: ClassVar[bool] = True
    has_momentum_branch: ClassVar[bool] = False
    is_symmetric: ClassVar[bool] = True

    def loss(self, first: Embedded, second: Embedded) -> Float[Tensor, ""]:
        """Negative cosine of each view's prediction and the other's target, in [-1, 1]."""
        return _symmetric_cosine(first, second)


@dataclass(frozen=True)
class BYOL:
    """As SimSiam, with the projection of a momentum encoder as target.

    Paper: Grill et al., 2020, 2006.07733, whose loss 2 - 2 cos, summed over both views, is 4 + 4 L_S. DSSL's released
    code has the 1/2 of SimSiam, and a constant momentum.

    Args:
        momentum: m of the momentum branch, in [0, 1].
    """

    momentum: float = 0.99

    has_predictor: ClassVar[bool] = True
    has_momentum_branch: ClassVar[bool] = True
    is_symmetric: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_momentum(self.momentum)

    def loss(self, first: Embedded, second: Embedded) -> Float[Tensor, ""]:
        """Negative cosine of each view's prediction and the other's target, in [-1, 1]."""
        return _symmetric_cosine(first, second)


@dataclass(frozen=True)
class MoCoV2:
    """The first view's query must tell the second view's key from a queue of past keys.

    Paper: He et al., 2020, eq. (1), 1911.05722; Chen et al., 2020, 2003.04297. z = projection, y = key.

    Args:
        temperature: tau, > 0.
        momentum: m of the momentum branch, in [0, 1].
        queue_length: k, rows of the queue; at least the batch.
        queue_initial: ``random`` rows that count as keys, as in MoCo's code, or ``empty``.
        queue_dtype: of the queue's rows.
        shuffle: permute the momentum branch's batch, over all processes, so that BatchNorm statistics do not tell a
            key's query.
        batch_norm_splits: virtual devices of the momentum branch's 2-d BatchNorm (of both branches with
            ``split_online``); 1 for ordinary BatchNorm.
        split_online: see ``batch_norm_splits``.
    """

    temperature: float = 0.2
    momentum: float = 0.999
    queue_length: int = 65536
    queue_initial: Literal["random", "empty"] = "random"
    queue_dtype: Literal["float32", "bfloat16"] = "float32"
    shuffle: bool = True
    batch_norm_splits: int = 1
    split_online: bool = False

    has_predictor: ClassVar[bool] = False
    has_momentum_branch: ClassVar[bool] = True
    is_symmetric: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_positive("temperature", self.temperature)
        _check_momentum(self.momentum)

    def loss(self, first: Embedded, second: Embedded, queue: Queue) -> Float[Tensor, ""]:
        """InfoNCE of the first view's query, nats."""
        query, key = unit(given(first.prediction)), given(second.target)
        return info_nce(query, key, Columns(queue.keys, queue.valid_length), self.temperature).mean()


@dataclass(frozen=True)
class BarlowTwins:
    """The cross-correlation of two views' projections, over the batch of all processes, must be the identity.

    Paper: Zbontar et al., 2021, eq. (1), 2103.03230. z = projection; the loss is ``ssl_core.losses.barlow_twins``.

    Args:
        off_diagonal_weight: lambda, >= 0.
    """

    off_diagonal_weight: float = 0.0051

    has_predictor: ClassVar[bool] = False
    has_momentum_branch: ClassVar[bool] = False
    is_symmetric: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.off_diagonal_weight < 0:
            raise ValueError(f"off_diagonal_weight must be at least 0, got {self.off_diagonal_weight}")

    def loss(self, first: Embedded, second: Embedded) -> Float[Tensor, ""]:
        """Distance of the cross-correlation matrix from the identity."""
        batch = [distributed.gather_with_grad(given(view.prediction)) for view in (first, second)]
        return barlow_twins(batch[0], batch[1], off_diagonal_weight=self.off_diagonal_weight)


Base = SimCLR | SimSiam | BYOL | MoCoV2 | BarlowTwins


def _symmetric_cosine(first: Embedded, second: Embedded) -> Tensor:
    one = negative_cosine(given(first.prediction), given(second.target))
    other = negative_cosine(given(second.prediction), given(first.target))
    return (one.mean() + other.mean()) / 2


def _check_positive(name: str, value: float) -> None:
    if value <= 0:
        raise ValueError(f"{name} must be positive, got {value}")


def _check_momentum(momentum: float) -> None:
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum must be between 0 and 1, got {momentum}")
