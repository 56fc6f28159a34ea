"""CLIM: images are mixed with neighbours that lie nearer to their cluster's center, and attracted to both."""

from ssl_clim.loss import clim_loss as clim_loss
from ssl_clim.method import CLIM as CLIM

__all__ = ["CLIM", "clim_loss"]
