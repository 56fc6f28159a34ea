"""A user's own torch data set as an image source."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from PIL import Image
from torch import Tensor

from ssl_core.data.pixels import from_array, pillow_pixels, with_channels


@dataclass(frozen=True, eq=False)
class DatasetImages:
    """The images of a map-style data set; its items are read anew each time.

    Attributes:
        name: name of the source for a person.
        dataset: map-style data set that gives (image, label, ...) or an image for an index.
        labels: (n) label of each image; None takes them from the items.
        classes: names of the classes.
        channels: number of channels that ``image`` returns; None keeps the images' own.
    """

    name: str
    dataset: Any
    labels: Int64[Tensor, " n"] | None
    classes: tuple[str, ...] | None
    channels: int | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def image(self, index: int) -> Shaped[Tensor, "c h w"]:
        """Pixels of an image."""
        item = self.dataset[index]
        image = item[0] if isinstance(item, tuple | list) else item
        if isinstance(image, Image.Image):
            image = pillow_pixels(image, self.channels)
        elif isinstance(image, np.ndarray):
            image = from_array(image, self.channels)
        elif not isinstance(image, Tensor) or image.ndim != 3:
            raise TypeError(f"item {index} of {self.name} is {type(image)}; give a PIL image or a (c h w) tensor")
        return with_channels(image, self.channels)

    def label(self, index: int) -> int:
        """The class of an image, -1 when unknown."""
        if self.labels is not None:
            return int(self.labels[index])
        item = self.dataset[index]
        return int(item[1]) if isinstance(item, tuple | list) and len(item) > 1 else -1

    def identifier(self, index: int) -> str:
        """The image's number."""
        return f"{self.name}:{index}"


def dataset_source(
    dataset: Any, *, name: str = "dataset", classes: Sequence[str] | None = None, channels: int | None = None
) -> DatasetImages:
    """A map-style torch data set as an image source, for `Batches` and for evaluation.

    Leave random augmentation out of the data set: the views do it, and do it reproducibly.

    Args:
        dataset: map-style data set whose items are (image, label, ...) or images. An image is a PIL image, a (c h w)
            tensor of uint8, uint16 or floating point in [0, 1], or an array as in a ``.npy`` file. Labels are taken
            from the attribute ``targets``, as torchvision's sets have it, or else from the items.
        name: name of the source for a person.
        classes: names of the classes; None takes the attribute ``classes`` if there is one.
        channels: number of channels; None keeps the images' own.

    Example:
        >>> source = dataset_source([(torch.zeros(3, 8, 8, dtype=torch.uint8), 1)])
        >>> len(source), source.image(0).shape, source.label(0)
        (1, torch.Size([3, 8, 8]), 1)
    """
    targets = getattr(dataset, "targets", None)
    names = getattr(dataset, "classes", None) if classes is None else classes
    return DatasetImages(
        name,
        dataset,
        None if targets is None else torch.as_tensor(targets).long(),
        None if names is None else tuple(names),
        channels,
    )
