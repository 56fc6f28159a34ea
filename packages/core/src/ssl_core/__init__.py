"""Self-supervised pretraining of image encoders: queue losses, views, data, training and evaluation.

``ssl_core.load_backbone(path)`` gives back what a run exported; the rest is in the subpackages.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_core.backbone import load_backbone as load_backbone

__all__ = ["load_backbone"]


def __getattr__(name: str) -> Any:
    # On first use: importing ssl_core alone should not import timm.
    if name == "load_backbone":
        from ssl_core.backbone import load_backbone

        return load_backbone
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
