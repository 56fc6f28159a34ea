"""Images with boxes: what a detector is trained on and judged by, whatever files it was read from.

A box is (x1, y1, x2, y2), the left, upper, right and lower edge in pixels, where the image begins at 0 and ends at its
width and height. VOC counts its pixels from 1 and names the last that belongs to a box: 1 less in x1 and y1 is the same
box here.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy.typing import NDArray

from ssl_core.data.source import listing
from ssl_core.data.transfer_sets import missing_text
from ssl_core.detect.segments import Segmentation, Segments, make_segments

logger = logging.getLogger(__name__)


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


class Thing(NamedTuple):
    """An object as a file has it.

    Attributes:
        image: index of its image.
        label: class.
        box: left, upper, right and lower edge.
        area: area in square pixels; None is the box's.
        is_crowd: whether it is a crowd.
        is_difficult: whether it is difficult.
        segmentation: polygons or compressed run-length encoding.
    """

    image: int
    label: int
    box: tuple[float, float, float, float]
    area: float | None = None
    is_crowd: bool = False
    is_difficult: bool = False
    segmentation: Segmentation | None = None


def make_annotations(
    name: str,
    classes: Sequence[str],
    paths: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    things: Sequence[Thing],
    *,
    masks: bool = False,
) -> Annotations:
    """Annotations from the objects of some images.

    Args:
        name: name of the set for a person.
        classes: names of the classes.
        paths: file names of the images.
        sizes: height and width of each image.
        things: objects, those of an image in their order.
        masks: whether the shapes of the objects are kept.
    """
    things = sorted(things, key=lambda thing: thing.image)
    boxes = np.array([thing.box for thing in things], float).reshape(-1, 4)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    given = np.array([np.nan if thing.area is None else thing.area for thing in things], float)
    return Annotations(
        name=name,
        classes=tuple(classes),
        paths=np.array([os.fsencode(path) for path in paths]),
        sizes=np.array(sizes, np.int64).reshape(-1, 2),
        image=np.array([thing.image for thing in things], np.int64),
        labels=np.array([thing.label for thing in things], np.int64),
        boxes=boxes,
        is_crowd=np.array([thing.is_crowd for thing in things], bool),
        is_difficult=np.array([thing.is_difficult for thing in things], bool),
        areas=np.where(np.isnan(given), areas, given),
        segments=make_segments([thing.segmentation or [] for thing in things]) if masks else None,
    )


def concatenated(parts: Sequence[Annotations]) -> Annotations:
    """Sets of the same classes, without shapes and numbers, as one."""
    starts = np.cumsum([0, *(len(part) for part in parts)])

    def joined(field: str) -> Any:
        return np.concatenate([getattr(part, field) for part in parts])

    return Annotations(
        name=" + ".join(part.name for part in parts),
        classes=parts[0].classes,
        image=np.concatenate([part.image + start for part, start in zip(parts, starts, strict=False)]),
        **{
            field: joined(field) for field in ("paths", "sizes", "labels", "boxes", "is_crowd", "is_difficult", "areas")
        },
    )


def box_flaw(box: Sequence[float], height: int, width: int) -> str | None:
    """What is wrong with the edges of a box, left, upper, right and lower; None for nothing.

    A box may exceed its image by a pixel, as some tools count from 1 and others from 0.
    """
    x1, y1, x2, y2 = box
    if not (x1 < x2 and y1 < y2):
        return "is empty"
    if min(x1, y1) < -1 or x2 > width + 1 or y2 > height + 1:
        return f"is outside its image of {width} x {height}"
    return None


def check_flaws(flaws: Sequence[str], number: int, name: str, broken_limit: float) -> None:
    """Say which objects of a set are left out, or refuse it.

    Args:
        flaws: what is wrong with each object that cannot be used.
        number: number of objects in all.
        name: name of the set.
        broken_limit: largest fraction of objects that are left out.

    Raises:
        ValueError: if there are more, or no others.
    """
    if not flaws:
        return
    if len(flaws) > broken_limit * number or len(flaws) == number:
        raise ValueError(
            f"{len(flaws):,} of {number:,} objects of {name} cannot be used, more than data.broken_limit "
            f"{broken_limit:g} allows: {listing(flaws)}\nMend or remove them, or raise data.broken_limit."
        )
    logger.warning("%s: left out %d of %d objects: %s", name, len(flaws), number, listing(flaws))


def check_missing(missing: Sequence[str], number: int, name: str, broken_limit: float) -> None:
    """Say which images of a set are not there, or refuse it; arguments as :func:`check_flaws`.

    Raises:
        FileNotFoundError: if more are missing than allowed, or all.
    """
    if not missing:
        return
    if len(missing) > broken_limit * number or len(missing) == number:
        raise FileNotFoundError(
            f"{name}: {missing_text(missing, number)}; data.broken_limit {broken_limit:g} allows fewer: fetch them, or "
            "raise it"
        )
    logger.warning("%s: %s", name, missing_text(missing, number))
