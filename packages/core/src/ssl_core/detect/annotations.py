"""Images with boxes: what a detector is trained on and judged by, whatever files it was read from.

A box is (x1, y1, x2, y2), the left, upper, right and lower edge in pixels, where the image begins at 0 and ends at its
width and height. VOC counts its pixels from 1 and names the last that belongs to a box: 1 less in x1 and y1 is the same
box here.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy.typing import NDArray

from ssl_core.detect.segments import Segments


@dataclass(frozen=True, eq=False)
class Federation:
    """What is known of the classes of LVIS, where no image is searched for all of them.

    Attributes:
        frequency: r (rare), c (common) or f (frequent) for each class.
        negatives: (n) classes that each image does not show.
        not_exhaustive: (n) classes of which each image may show objects without a box.
    """

    frequency: tuple[str, ...]
    negatives: tuple[tuple[int, ...], ...]
    not_exhaustive: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False)
class Annotations:
    """The objects in some images, in the order of the images.

    Attributes:
        name: name of the set for a person.
        classes: names of the classes.
        paths: (n) file names of the images, as bytes.
        sizes: (n 2) height and width of each image.
        image: (m) index of each object's image, ascending.
        labels: (m) class of each object.
        boxes: (m 4) box of each object.
        is_crowd: (m) whether a box holds several objects, which none is trained on and none is judged by.
        is_difficult: (m) whether an object of VOC is difficult, which is trained on and not judged by.
        areas: (m) area of each object as the file has it, in square pixels.
        segments: shape of each object; None where the set has none.
        federation: what LVIS knows of its classes; None for other sets.
        image_ids: (n) number of each image in its file, for the results; None for sets without numbers.
        category_ids: number of each class in the file; None for sets without numbers.
    """

    name: str
    classes: tuple[str, ...]
    paths: NDArray[Any]
    sizes: Int64[np.ndarray, "n 2"]
    image: Int64[np.ndarray, " m"]
    labels: Int64[np.ndarray, " m"]
    boxes: Float64[np.ndarray, "m 4"]
    is_crowd: Bool[np.ndarray, " m"]
    is_difficult: Bool[np.ndarray, " m"]
    areas: Float64[np.ndarray, " m"]
    segments: Segments | None = None
    federation: Federation | None = None
    image_ids: tuple[int, ...] | None = None
    category_ids: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, images: Int64[np.ndarray, " k"], objects: Bool[np.ndarray, " m"] | None = None) -> "Annotations":
        """Some of the images, with all their objects or some.

        Args:
            images: (k) indices, ascending.
            objects: (m) whether an object is kept; None keeps all.
        """
        number = np.full(len(self), -1)
        number[images] = np.arange(len(images))
        kept = number[self.image] >= 0
        if objects is not None:
            kept &= objects
        federation = self.federation and replace(
            self.federation,
            negatives=tuple(self.federation.negatives[index] for index in images.tolist()),
            not_exhaustive=tuple(self.federation.not_exhaustive[index] for index in images.tolist()),
        )
        return replace(
            self,
            paths=self.paths[images],
            sizes=self.sizes[images],
            image=number[self.image[kept]],
            labels=self.labels[kept],
            boxes=self.boxes[kept],
            is_crowd=self.is_crowd[kept],
            is_difficult=self.is_difficult[kept],
            areas=self.areas[kept],
            segments=self.segments and self.segments.subset(kept),
            federation=federation,
            image_ids=self.image_ids and tuple(self.image_ids[index] for index in images.tolist()),
        )

    def training(self) -> "Annotations":
        """What is trained on: no crowds, no images without objects."""
        objects = ~self.is_crowd
        return self.subset(np.unique(self.image[objects]), objects)
