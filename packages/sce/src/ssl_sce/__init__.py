"""SCE: Similarity Contrastive Estimation, with MoCo v2 and ReSSL as settings of the same method."""

from typing import TYPE_CHECKING

from ssl_core.lazy import on_first_use

if TYPE_CHECKING:
    from ssl_sce.loss import sce_loss as sce_loss
    from ssl_sce.method import SCE as SCE
    from ssl_sce.method import SCEConfig as SCEConfig

__all__ = ["SCE", "SCEConfig", "sce_loss"]

__getattr__ = on_first_use(__name__, loss="sce_loss", method="SCE SCEConfig")
