"""Boxes in PASCAL VOC's layout: a file of XML for each image, and lists of the images of each part.

* ``Annotations/NAME.xml``: size of the image, and name, box and difficulty of each object
* ``ImageSets/Main/PART.txt``: a NAME on each line
* ``JPEGImages/NAME.jpg``, or another suffix of an image
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from ssl_core.data.decode import suffixes
from ssl_core.data.files import read_text
from ssl_core.data.labels import ordered
from ssl_core.data.voc import VOC_CLASSES
from ssl_core.detect.annotations import (
    Annotations,
    Thing,
    box_flaw,
    check_flaws,
    check_missing,
    concatenated,
    make_annotations,
)

_ARCHIVES = {
    "VOC2007": "VOCtrainval_06-Nov-2007.tar and VOCtest_06-Nov-2007.tar have it",
    "VOC2012": "VOCtrainval_11-May-2012.tar has it",
}
_EDGES = ("xmin", "ymin", "xmax", "ymax")


def voc0712(root: Path, *, broken_limit: float = 0.01) -> tuple[Annotations, Annotations]:
    """VOC's trainval of 2007 and 2012, and the test of 2007.

    Args:
        root: folder that holds ``VOCdevkit``.
        broken_limit: largest fraction of images that may be missing, and of objects that cannot be used.

    Raises:
        FileNotFoundError: if a list, an annotation or too many images are not there.
        ValueError: as :func:`voc_annotations`.
    """
    devkit = root / "VOCdevkit"

    def part(year: str, name: str) -> Annotations:
        return voc_annotations(devkit / year, name, VOC_CLASSES, broken_limit=broken_limit)

    return concatenated([part("VOC2007", "trainval"), part("VOC2012", "trainval")]), part("VOC2007", "test")


def own_voc(folder: Path, *, broken_limit: float = 0.01) -> tuple[Annotations, Annotations]:
    """A folder in VOC's layout: ``test`` after ``trainval``, or where there is no ``test``, ``val`` after ``train``.

    The classes are the names of the training objects. Arguments and errors as :func:`voc0712`.
    """
    main = folder / "ImageSets" / "Main"
    has_test, has_trainval = ((main / f"{part}.txt").is_file() for part in ("test", "trainval"))
    train = voc_annotations(folder, "trainval" if has_test and has_trainval else "train", broken_limit=broken_limit)
    return train, voc_annotations(folder, "test" if has_test else "val", train.classes, broken_limit=broken_limit)


def voc_annotations(
    folder: Path, part: str, classes: Sequence[str] | None = None, *, broken_limit: float = 0.01
) -> Annotations:
    """The objects of a part of a set.

    Args:
        folder: folder that holds ``Annotations``, ``ImageSets`` and ``JPEGImages``.
        part: name of the part's list.
        classes: names of the classes; None are all that occur, in order.
        broken_limit: largest fraction of images that may be missing, and of objects that are empty or outside their
            image; these are left out.

    Raises:
        FileNotFoundError: if the list, an annotation or too many images are not there.
        ValueError: for an annotation that cannot be read, an object of another class, and if too many objects cannot
            be used.
    """
    title = f"{folder} {part}"
    names = _listed(folder, part)
    files = _image_files(folder / "JPEGImages")
    missing = [f"JPEGImages/{name}" for name in names if name not in files]
    check_missing(missing, len(names), title, broken_limit)
    names = [name for name in names if name in files]
    sizes: list[tuple[int, int]] = []
    found: list[tuple[str, Thing]] = []
    flaws: list[str] = []
    for index, name in enumerate(names):
        file = folder / "Annotations" / f"{name}.xml"
        root = _parsed(file, part)
        height, width = (int(_number(root.find("size"), side, file)) for side in ("height", "width"))
        if min(height, width) < 1:
            raise ValueError(f"{file} has an image of {width} x {height} pixels; correct its size")
        sizes.append((height, width))
        for each in root.iterfind("object"):
            label = (each.findtext("name") or "").strip()
            if not label or (classes is not None and label not in classes):
                raise ValueError(
                    f"{file}: an object of class {label!r}, which is none of the {len(classes or ())} classes that are "
                    f"trained: {', '.join(classes or ())[:200]}; correct or remove it"
                )
            x1, y1, x2, y2 = box = [_number(each.find("bndbox"), edge, file) for edge in _EDGES]
            if flaw := box_flaw(box, height, width):
                flaws.append(f"{file}: {label} ({', '.join(f'{edge:g}' for edge in box)}) {flaw}")
                continue
            is_difficult = bool(each.findtext("difficult")) and _number(each, "difficult", file) != 0
            # VOC's pixels are counted from 1, and the last belongs to the box.
            found.append((label, Thing(index, 0, (x1 - 1, y1 - 1, x2, y2), is_difficult=is_difficult)))
    check_flaws(flaws, len(flaws) + len(found), title, broken_limit)
    known = list(classes) if classes is not None else ordered({label for label, _ in found})
    number = {label: place for place, label in enumerate(known)}
    things = [thing._replace(label=number[label]) for label, thing in found]
    return make_annotations(title, known, [files[name] for name in names], sizes, things)


def _listed(folder: Path, part: str) -> list[str]:
    file = folder / "ImageSets" / "Main" / f"{part}.txt"
    if not file.is_file():
        where = _ARCHIVES.get(folder.name, "it names an image without its suffix on each line")
        raise FileNotFoundError(f"{file} is not there: {where}")
    names = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    if not names:
        raise ValueError(f"{file} names no images")
    if len(set(names)) < len(names):
        twice = next(name for at, name in enumerate(names) if name in names[:at])
        raise ValueError(f"{file} names {twice} twice; remove one")
    return names


def _image_files(folder: Path) -> dict[str, str]:
    """The image files of a folder by their names without suffix."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not there: it holds the images")
    readable = suffixes()
    files: dict[str, str] = {}
    for name in sorted(os.listdir(folder)):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in readable:
            if stem in files:
                raise ValueError(f"{folder} has {name} beside {os.path.basename(files[stem])}; remove one")
            files[stem] = os.path.join(folder, name)
    return files


def _parsed(file: Path, part: str) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(file.read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{file} is not there, and {part}.txt names it; an image without objects has one without <object>"
        ) from None
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the last two for encodings
        raise ValueError(f"{file} is not XML that can be read ({error}); write it anew, as UTF-8") from error


def _number(parent: ElementTree.Element | None, tag: str, file: Path) -> float:
    text = None if parent is None else parent.findtext(tag)
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{file}: <{tag}> is {text!r}, not a number; correct it")
    return value
