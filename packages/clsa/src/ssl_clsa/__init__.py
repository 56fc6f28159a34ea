"""CLSA: Contrastive Learning with Stronger Augmentations."""

from ssl_clsa.loss import CLSALoss as CLSALoss
from ssl_clsa.loss import clsa_loss as clsa_loss
from ssl_clsa.method import CLSA as CLSA

__all__ = ["CLSA", "CLSALoss", "clsa_loss"]
