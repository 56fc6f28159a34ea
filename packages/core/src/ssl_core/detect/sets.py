"""The sets that detectors are trained and tested on, by name, and a folder of one's own."""

from pathlib import Path
from typing import Literal, TypeAlias

from ssl_core.data.files import TEST_NAMES, TRAIN_NAMES, split_name
from ssl_core.detect.annotations import Annotations
from ssl_core.detect.coco import coco, lvis
from ssl_core.detect.voc import own_voc, voc0712

DetectionSet: TypeAlias = Literal["voc0712", "coco", "lvis"]


def open_set(
    name: DetectionSet, root: Path, *, masks: bool = False, broken_limit: float = 0.01
) -> tuple[Annotations, Annotations]:
    """A set for training and for testing; what is trained on is ``training()`` of the first.

    Args:
        name: ``voc0712``, ``coco`` (2017) or ``lvis`` (0.5).
        root: folder that holds ``VOCdevkit``, or ``annotations``, ``train2017`` and ``val2017``.
        masks: whether the shapes of objects are read.
        broken_limit: largest fraction of images that may be missing, and of objects that cannot be used.

    Raises:
        FileNotFoundError: if a file or too many images are not there.
        ValueError: if a file cannot be understood, too many objects cannot be used, or there are no shapes.
        ImportError: with masks, if faster-coco-eval is not installed.
    """
    if name == "voc0712":
        _refuse_masks(masks, root)
        return voc0712(root, broken_limit=broken_limit)
    return {"coco": coco, "lvis": lvis}[name](root, masks=masks, broken_limit=broken_limit)


def open_folder(folder: Path, *, masks: bool = False, broken_limit: float = 0.01) -> tuple[Annotations, Annotations]:
    """A folder of one's own, in VOC's layout (:mod:`ssl_core.detect.voc`) or COCO's (:mod:`ssl_core.detect.coco`).

    In COCO's, the parts are the two of ``annotations/instances_PART.json`` that are named for training and testing.
    Arguments and errors as :func:`open_set`.
    """
    if (folder / "Annotations").is_dir():
        _refuse_masks(masks, folder)
        return own_voc(folder, broken_limit=broken_limit)
    parts = [file.stem.removeprefix("instances_") for file in sorted(folder.glob("annotations/instances_*.json"))]
    words = {part: word[0] for part in parts if (word := split_name(part)) is not None}
    train, test = (
        next((part for each in names for part, word in words.items() if word == each), None)
        for names in (TRAIN_NAMES, TEST_NAMES)
    )
    if train is None or test is None:
        raise FileNotFoundError(
            f"{folder} is in no layout that is read: VOC's has the folders Annotations, ImageSets/Main and JPEGImages; "
            "COCO's has annotations/instances_train.json with the folder train, and the same of val"
        )
    return coco(folder, train=train, test=test, masks=masks, broken_limit=broken_limit)


def _refuse_masks(masks: bool, folder: Path) -> None:
    if masks:
        raise ValueError(f"{folder} is in VOC's layout, whose boxes have no shapes: choose a protocol without masks")
