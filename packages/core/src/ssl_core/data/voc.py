"""PASCAL VOC 2007: the classes, of 20, that each image shows, by the lists in ``ImageSets/Main``."""

import os
from pathlib import Path

from ssl_core.data.files import read_text

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
VOC_NAME = "voc2007"
VOC_SEVERAL = f"an image may show several of {len(VOC_CLASSES)} classes, which ssl-core eval voc07 tells apart"
VOC_FOLDER = os.path.join("VOCdevkit", "VOC2007")

_VALUES = {"1": 1, "0": 0, "-1": -1}


def voc_labels(root: Path, part: str) -> dict[str, list[int]]:
    """A value for each of ``VOC_CLASSES``, of each image of a part, by the image's name in the order of the lists.

    Args:
        root: folder that holds ``VOCdevkit``.
        part: name of the part: train, val or test.

    Returns:
        Mapping from the name of an image to its values: 1 for a class with an object that is not difficult, 0 for a
        class with difficult objects only, -1 for a class that the image does not show.

    Raises:
        FileNotFoundError: if a list is not there.
        ValueError: for another value, and for an image that one class names and another does not.
    """
    values: dict[str, list[int]] = {}
    main = root / VOC_FOLDER / "ImageSets" / "Main"
    first = main / f"{VOC_CLASSES[0]}_{part}.txt"
    for name in VOC_CLASSES:
        file = main / f"{name}_{part}.txt"
        of_class = _class_values(file)
        if name == VOC_CLASSES[0]:
            values = {image: [] for image in of_class}
        if odd := sorted(values.keys() ^ of_class.keys()):
            here, there = (file, first) if odd[0] in of_class else (first, file)
            raise ValueError(f"image {odd[0]} is in {here} but not in {there.name}: unpack VOC2007's archives anew")
        for image, value in of_class.items():
            values[image].append(value)
    return values


def _class_values(file: Path) -> dict[str, int]:
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is not there: ImageSets/Main of VOC2007 has a list of each class for train, val and test, in the "
            "archives VOCtrainval_06-Nov-2007.tar and VOCtest_06-Nov-2007.tar; unpack both in data.root"
        )
    values: dict[str, int] = {}
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        if not line.strip():
            continue
        image, *value = line.split()
        if len(value) != 1 or value[0] not in _VALUES or image in values:
            raise ValueError(
                f"line {number} of {file}, {line!r:.80}, is not an image and 1, 0 or -1, once for each image; "
                "unpack VOC2007's archives anew"
            )
        values[image] = _VALUES[value[0]]
    return values
