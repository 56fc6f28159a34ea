"""SCE: Similarity Contrastive Estimation, with MoCo v2 and ReSSL as settings of the same method."""

from ssl_sce.loss import sce_loss as sce_loss
from ssl_sce.method import SCE as SCE
from ssl_sce.method import SCEConfig as SCEConfig

__all__ = ["SCE", "SCEConfig", "sce_loss"]
