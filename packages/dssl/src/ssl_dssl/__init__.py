"""DSSL: heavily augmented views are attracted to their standard view, never the reverse; over five base methods."""

from typing import TYPE_CHECKING

from ssl_core.lazy import on_first_use

if TYPE_CHECKING:
    from ssl_dssl.bases import BYOL as BYOL
    from ssl_dssl.bases import BarlowTwins as BarlowTwins
    from ssl_dssl.bases import MoCoV2 as MoCoV2
    from ssl_dssl.bases import SimCLR as SimCLR
    from ssl_dssl.bases import SimSiam as SimSiam
    from ssl_dssl.bases import make_base as make_base
    from ssl_dssl.loss import Embedded as Embedded
    from ssl_dssl.loss import directional_loss as directional_loss
    from ssl_dssl.method import DSSL as DSSL
    from ssl_dssl.method import DSSLConfig as DSSLConfig

__all__ = [
    "BYOL",
    "DSSL",
    "BarlowTwins",
    "DSSLConfig",
    "Embedded",
    "MoCoV2",
    "SimCLR",
    "SimSiam",
    "directional_loss",
    "make_base",
]

__getattr__ = on_first_use(
    __name__,
    bases="BYOL BarlowTwins MoCoV2 SimCLR SimSiam make_base",
    loss="Embedded directional_loss",
    method="DSSL DSSLConfig",
)
