"""CLSA: Contrastive Learning with Stronger Augmentations."""

from ssl_clsa.loss import CLSALoss as CLSALoss
from ssl_clsa.loss import clsa_loss as clsa_loss

__all__ = ["CLSALoss", "clsa_loss"]
