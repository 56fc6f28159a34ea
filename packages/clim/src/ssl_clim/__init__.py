"""CLIM: images are mixed with neighbours that lie nearer to their cluster's center, and attracted to both."""

from ssl_clim.loss import clim_loss as clim_loss
from ssl_clim.method import CLIM as CLIM
from ssl_clim.method import CLIMConfig as CLIMConfig

__all__ = ["CLIM", "CLIMConfig", "clim_loss"]
