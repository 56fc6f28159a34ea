"""CLIM: images are mixed with neighbors that lie nearer to their cluster's center, and attracted to both."""

from typing import TYPE_CHECKING

from ssl_core.lazy import on_first_use

if TYPE_CHECKING:
    from ssl_clim.loss import clim_loss as clim_loss
    from ssl_clim.method import CLIM as CLIM
    from ssl_clim.method import CLIMConfig as CLIMConfig

__all__ = ["CLIM", "CLIMConfig", "clim_loss"]

__getattr__ = on_first_use(__name__, loss="clim_loss", method="CLIM CLIMConfig")
