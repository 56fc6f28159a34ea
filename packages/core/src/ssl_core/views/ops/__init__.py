"""The ops of views, each in a file of its own. The imports are the table: what stands here is known everywhere."""

from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any

from ssl_core.views.op import ViewOp
from ssl_core.views.ops.blur import GaussianBlur as GaussianBlur
from ssl_core.views.ops.choice import Choice as Choice
from ssl_core.views.ops.crop import CenterCrop as CenterCrop
from ssl_core.views.ops.crop import RandomCrop as RandomCrop
from ssl_core.views.ops.crop import RandomResizedCrop as RandomResizedCrop
from ssl_core.views.ops.crop import Resize as Resize
from ssl_core.views.ops.flip import HorizontalFlip as HorizontalFlip
from ssl_core.views.ops.gray import Grayscale as Grayscale
from ssl_core.views.ops.jigsaw import Jigsaw as Jigsaw
from ssl_core.views.ops.jitter import ColorJitter as ColorJitter
from ssl_core.views.ops.rand_augment import RandAugment as RandAugment
from ssl_core.views.ops.random_erasing import RandomErasing as RandomErasing
from ssl_core.views.ops.solarize import Solarize as Solarize

_CLASSES: list[Any] = [value for value in tuple(vars().values()) if is_dataclass(value)]

# Name in a configuration -> class, of all the above.
VIEW_OPS: dict[str, Callable[..., ViewOp]] = {op.name: op for op in _CLASSES}
