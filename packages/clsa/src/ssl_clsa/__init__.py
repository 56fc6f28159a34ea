"""CLSA: Contrastive Learning with Stronger Augmentations."""

from typing import TYPE_CHECKING

from ssl_core.lazy import on_first_use

if TYPE_CHECKING:
    from ssl_clsa.loss import CLSALoss as CLSALoss
    from ssl_clsa.loss import clsa_loss as clsa_loss
    from ssl_clsa.method import CLSA as CLSA
    from ssl_clsa.method import CLSAConfig as CLSAConfig

__all__ = ["CLSA", "CLSAConfig", "CLSALoss", "clsa_loss"]

__getattr__ = on_first_use(__name__, loss="CLSALoss clsa_loss", method="CLSA CLSAConfig")
