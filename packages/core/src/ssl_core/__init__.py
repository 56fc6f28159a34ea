"""Self-supervised pretraining of image encoders: queue losses, views, data, training and evaluation.

``ssl_core.load_backbone(path)`` gives back what a run exported; the rest is in the subpackages.
"""

from typing import TYPE_CHECKING

from ssl_core.lazy import on_first_use

if TYPE_CHECKING:
    from ssl_core.backbone import load_backbone as load_backbone

__all__ = ["load_backbone"]

__getattr__ = on_first_use(__name__, backbone="load_backbone")
