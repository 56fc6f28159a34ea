"""CLSA: Contrastive Learning with Stronger Augmentations."""

from ssl_clsa.loss import CLSALoss as CLSALoss
from ssl_clsa.loss import clsa_loss as clsa_loss
from ssl_clsa.method import CLSA as CLSA
from ssl_clsa.method import CLSAConfig as CLSAConfig

__all__ = ["CLSA", "CLSAConfig", "CLSALoss", "clsa_loss"]
