"""Self-supervised pretraining of image encoders: queue losses, views, data, training and evaluation.

``ssl_core.load_backbone(path)`` gives back what a run exported, ``ssl_core.load_classifier(path)`` the classifier of a
linear probe; the rest is in the subpackages.
"""

from typing import TYPE_CHECKING

from ssl_core.lazy import on_first_use

if TYPE_CHECKING:
    from ssl_core.backbone import load_backbone as load_backbone
    from ssl_core.evaluate.classifier import load_classifier as load_classifier

__all__ = ["load_backbone", "load_classifier"]

__getattr__ = on_first_use(__name__, backbone="load_backbone", evaluate="load_classifier")
