"""Boxes and shapes in COCO's layout, and LVIS's: one file of JSON for all images of a part.

LVIS, whose images are COCO's, also names for each image classes that it does not show, and classes of which it may show
more than is marked; and for each class whether it is rare, common or frequent.
"""

import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from ssl_core.data.files import read_text
from ssl_core.detect.annotations import (
    Annotations,
    Federation,
    Thing,
    box_flaw,
    check_flaws,
    check_missing,
    make_annotations,
)
from ssl_core.detect.segments import check_detection, compressed_runs, polygons_of

# What is needed of each entry, and of what kind; ids are whole numbers, or texts as some programs write them.
_FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "images": {"id": (int, str), "file_name": str, "height": (int, float), "width": (int, float)},
    "annotations": {"image_id": (int, str), "category_id": (int, str), "bbox": list},
    "categories": {"id": (int, str), "name": str},
}
_COCO_2014 = re.compile(r"COCO_[a-z]+2014_")  # what LVIS 0.5 puts before the names of COCO's images of 2017


def coco(
    root: Path, *, train: str = "train2017", test: str = "val2017", masks: bool = False, broken_limit: float = 0.01
) -> tuple[Annotations, Annotations]:
    """Two parts of a set: ``annotations/instances_PART.json`` and the images in the folder ``PART``.

    Args:
        root: folder that holds both.
        train: name of the part for training.
        test: name of the part for testing.
        masks: whether the shapes of objects are read.
        broken_limit: as :func:`coco_annotations`.

    Raises:
        FileNotFoundError: as :func:`coco_annotations`.
        ValueError: as :func:`coco_annotations`, and if the parts have not the same classes.
    """
    files = {part: (root / "annotations" / f"instances_{part}.json", root / part) for part in (train, test)}
    return _pair(files[train], files[test], masks, broken_limit)


def lvis(root: Path, *, masks: bool = False, broken_limit: float = 0.01) -> tuple[Annotations, Annotations]:
    """LVIS 0.5: ``annotations/lvis_v0.5_train.json`` and ``_val.json``, and COCO's images; see :func:`coco`."""
    files = [
        (root / "annotations" / f"lvis_v0.5_{part}.json", root / folder)
        for part, folder in (("train", "train2017"), ("val", "val2017"))
    ]
    parts = _pair(files[0], files[1], masks, broken_limit)
    for part in parts:
        if part.federation is None:
            raise ValueError(f"{part.name} is no file of LVIS, whose categories all have a frequency; fetch it anew")
    return parts


def coco_annotations(file: Path, folder: Path, *, masks: bool = False, broken_limit: float = 0.01) -> Annotations:
    """The objects of a file.

    Classes are in the order of the file, images in that of their numbers.

    Args:
        file: file of JSON with ``images``, ``annotations`` and ``categories``.
        folder: folder that holds the images.
        masks: whether the shapes of objects are read.
        broken_limit: largest fraction of images that may be missing, and of objects that are empty, outside their image
            or, with masks, without a shape; these are left out.

    Raises:
        FileNotFoundError: if the file, the folder or too many images are not there.
        ValueError: for a file in another form, an unknown class or image, and if too many objects cannot be used.
        ImportError: with masks, if faster-coco-eval is not installed.
    """
    if masks:
        check_detection()
    content = _content(file)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not there: it holds the images of {file.name}")
    categories, records = content["categories"], sorted(content["images"], key=lambda each: each["id"])
    is_lvis = all("frequency" in each for each in categories) and bool(categories)
    there = set(os.listdir(folder))
    paths = {each["id"]: _path(each, folder, is_lvis) for each in records}
    missing = {
        key: path
        for key, path in paths.items()
        if not (os.path.dirname(path) == str(folder) and os.path.basename(path) in there) and not os.path.isfile(path)
    }
    check_missing(list(missing.values()), len(paths), str(file), broken_limit)
    kept = [each for each in records if each["id"] not in missing]
    labels = {each["id"]: label for label, each in enumerate(categories)}
    place = {each["id"]: index for index, each in enumerate(kept)}
    sizes = [_size(each, file) for each in kept]
    things: list[Thing] = []
    flaws: list[str] = []
    for number, each in enumerate(content["annotations"]):
        where = f"{file}: annotation {each.get('id', f'{number + 1} from the top')}"
        for key, known in (("image_id", paths), ("category_id", labels)):
            if each.get(key) not in known:
                raise ValueError(f"{where}: its {key} {each.get(key)!r} is none of the file's; correct or remove it")
        if each["image_id"] in missing:
            continue
        index = place[each["image_id"]]
        for key, is_right, kind in (
            ("bbox", _is_box, "four numbers"),
            ("area", lambda area: area is None or isinstance(area, (int, float)), "a number"),
            ("iscrowd", lambda crowd: crowd in (None, 0, 1), "0 or 1"),
        ):
            if not is_right(each.get(key)):
                raise ValueError(f"{where}: its {key} {each[key]!r:.80} is not {kind}; correct or remove it")
        thing, flaw = _thing(each, index, labels[each["category_id"]], sizes[index], masks)
        if flaw:
            flaws.append(f"{where} {flaw}")
        else:
            things.append(thing)
    check_flaws(flaws, len(flaws) + len(things), str(file), broken_limit)
    annotations = make_annotations(
        str(file),
        [each["name"] for each in categories],
        [paths[each["id"]] for each in kept],
        sizes,
        things,
        masks=masks,
    )
    return replace(
        annotations,
        federation=_federation(categories, kept, labels, file) if is_lvis else None,
        image_ids=tuple(each["id"] for each in kept),
        category_ids=tuple(each["id"] for each in categories),
    )


def _pair(
    train: tuple[Path, Path], test: tuple[Path, Path], masks: bool, broken_limit: float
) -> tuple[Annotations, Annotations]:
    parts = [coco_annotations(*files, masks=masks, broken_limit=broken_limit) for files in (train, test)]
    if parts[0].classes != parts[1].classes:
        odd = sorted(set(parts[0].classes) ^ set(parts[1].classes))
        raise ValueError(
            f"{train[0]} and {test[0]} have not the same classes in the same order: "
            f"{', '.join(odd[:5]) or 'the order differs'}; write the categories of one into the other"
        )
    return parts[0], parts[1]


def _content(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there: it has the boxes; the set's archive of annotations has it")
    try:
        content = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON ({error}); fetch or write it anew") from error
    for key, fields in _FIELDS.items():
        rows = content.get(key) if isinstance(content, dict) else None
        if not isinstance(rows, list) or (key != "annotations" and not rows):
            raise ValueError(f"{file} has no list of {key}, as a file of COCO has")
        for row in rows:
            for field, kind in fields.items():
                if not isinstance(row, dict) or not isinstance(row.get(field), kind):
                    raise ValueError(f"{file}: {key} has an entry without {field}, or of another kind: {row!r:.120}")
        ids = {row["id"] for row in rows if key != "annotations"}
        if len(ids) < len(rows) and key != "annotations":
            raise ValueError(f"{file}: {key} has entries of one id; number them anew")
        if len(set(map(type, ids))) > 1:
            raise ValueError(f"{file}: {key} has numbers and texts as ids; number them anew")
    return dict(content)


def _path(record: dict[str, Any], folder: Path, is_lvis: bool) -> str:
    """The file of an image; LVIS names COCO's images of 2017 by their names of 2014, and by their addresses."""
    if is_lvis and (address := re.search(r"([^/]+)/([^/]+)$", str(record.get("coco_url")))):
        return os.path.join(folder.parent, *address.groups())
    return os.path.join(folder, _COCO_2014.sub("", record["file_name"]) if is_lvis else record["file_name"])


def _size(record: dict[str, Any], file: Path) -> tuple[int, int]:
    height, width = record["height"], record["width"]
    if not all(1 <= side < math.inf for side in (height, width)):
        raise ValueError(f"{file}: image {record['id']} has {width} x {height} pixels; correct its size")
    return int(height), int(width)


def _is_box(box: list[Any]) -> bool:
    return len(box) == 4 and all(isinstance(number, (int, float)) for number in box)


def _thing(
    record: dict[str, Any], image: int, label: int, size: tuple[int, int], masks: bool
) -> tuple[Thing, str | None]:
    """An object, and what is wrong with it."""
    x, y, width, height = map(float, record["bbox"])
    box = (x, y, x + width, y + height)
    flaw = box_flaw(box, *size)
    if flaw:
        flaw = f"({', '.join(f'{number:g}' for number in record['bbox'])}) {flaw}"
    shape = record.get("segmentation") or []
    if masks and not flaw:
        try:
            shape = compressed_runs(shape, *size) if isinstance(shape, dict) else polygons_of(shape)
            flaw = None if shape else "has no polygon of three points: Mask R-CNN learns from shapes"
        except ValueError as error:
            flaw = f"has {error}"
    return Thing(image, label, box, record.get("area"), bool(record.get("iscrowd")), segmentation=shape), flaw


def _federation(
    categories: list[dict[str, Any]], records: list[dict[str, Any]], labels: dict[int, int], file: Path
) -> Federation:
    def known(field: str) -> tuple[tuple[int, ...], ...]:
        try:
            return tuple(tuple(labels[key] for key in each.get(field, ())) for each in records)
        except KeyError as error:
            raise ValueError(f"{file}: {field} names {error}, which is none of its categories; fetch it anew") from None
        except TypeError as error:
            raise ValueError(f"{file}: {field} of an image is no list of categories ({error}); fetch it anew") from None

    frequency = tuple(str(each["frequency"]) for each in categories)
    if odd := sorted(set(frequency) - set("rcf")):
        raise ValueError(f"{file}: a category's frequency is {odd[0]!r}, none of r, c and f; fetch it anew")
    return Federation(frequency, known("neg_category_ids"), known("not_exhaustive_category_ids"))
