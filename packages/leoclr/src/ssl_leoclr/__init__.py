"""LeOCLR: crops are attracted to their uncropped image and not to each other; with its baselines MoCo v2 and SimCLR."""

from ssl_leoclr.loss import leoclr_loss as leoclr_loss
from ssl_leoclr.method import LeOCLR as LeOCLR
from ssl_leoclr.method import LeOCLRConfig as LeOCLRConfig

__all__ = ["LeOCLR", "LeOCLRConfig", "leoclr_loss"]
