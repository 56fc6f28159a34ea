"""LeOCLR: crops are attracted to their uncropped image and not to each other; with its baselines MoCo v2 and SimCLR."""

from typing import TYPE_CHECKING

from ssl_core.lazy import on_first_use

if TYPE_CHECKING:
    from ssl_leoclr.loss import leoclr_loss as leoclr_loss
    from ssl_leoclr.method import LeOCLR as LeOCLR
    from ssl_leoclr.method import LeOCLRConfig as LeOCLRConfig

__all__ = ["LeOCLR", "LeOCLRConfig", "leoclr_loss"]

__getattr__ = on_first_use(__name__, loss="leoclr_loss", method="LeOCLR LeOCLRConfig")
