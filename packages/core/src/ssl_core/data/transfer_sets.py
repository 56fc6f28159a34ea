"""Sets that encoders are transferred to, in the layouts in which they are distributed, and torchvision keeps them.

Each reader gives the images that a set's own lists name for training, validation and test, in their order;
``docs/data.md`` has the layouts. Where the lists name images for validation, the training images here include them.
"""

import csv
import io
import json
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from ssl_core.data.files import FileImages, file_images, read_text
from ssl_core.data.labels import ordered
from ssl_core.data.voc import VOC_FOLDER, voc_labels
from ssl_core.philox import permutation

Metric: TypeAlias = Literal["top1", "mean_per_class", "map11"]

_LISTED = 5
_CALTECH_TRAIN = 30  # images of a class
_CALTECH_STREAM = 0x63616C74  # "calt"


class _Lists(NamedTuple):
    """Names of the classes in their order, and path below the root and class of the images of each split."""

    classes: Sequence[str]
    train: Sequence[tuple[str, str | None]]
    test: Sequence[tuple[str, str | None]]
    validation: Sequence[tuple[str, str | None]] = ()


@dataclass(frozen=True)
class TransferSet:
    """The published facts about a set, and the reader of its lists.

    Attributes:
        metric: score of the set: top-1, the mean of the classes' top-1, or the mean of 11-point average precisions.
        classes: number of classes.
        train: number of training images, without those for validation.
        test: number of test images.
        validation: number of images that the set's own lists keep for validation.
        read: function of ``data.root`` that reads the set's lists; None for a set that torchvision reads.
    """

    metric: Metric
    classes: int
    train: int
    test: int
    validation: int = 0
    read: Callable[[Path], _Lists] | None = None


def transfer_images(
    name: str, root: Path, split: str, *, class_list: Sequence[str] | None, broken_limit: float
) -> FileImages:
    """The images of a set that are there, in the order of its lists.

    Args:
        name: name of a set with a reader in ``TRANSFER_SETS``.
        root: folder that holds the set's folder.
        split: name of the split: ``train`` or ``labelled``, both with the images for validation; ``validation``; or
            ``test``.
        class_list: names of the classes that are read, in their order; None is all.
        broken_limit: largest fraction of listed images that may not be there.

    Raises:
        FileNotFoundError: if a list is not there.
        ValueError: for a list that cannot be understood, and if more images are missing than allowed.
    """
    read = TRANSFER_SETS[name].read
    assert read is not None
    try:
        lists = read(root)
    except FileNotFoundError as error:
        is_inside = str(root / root.name) in str(error)
        hint = f"; data.root is the folder above {root.name}: give {root.parent}" if is_inside else ""
        raise FileNotFoundError(f"{error}{hint}") from error
    labelled = [*lists.train, *lists.validation]
    if lacking := {each for _, each in (*lists.validation, *lists.test)} - {each for _, each in lists.train}:
        listed = sorted(map(str, lacking))[:_LISTED]
        raise ValueError(f"{name}: validation or test images have classes that training images lack: {listed}")
    rows = {"test": lists.test, "validation": lists.validation}.get(split, labelled)
    classes = lists.classes
    if class_list is not None:
        if unknown := [each for each in class_list if each not in classes]:
            raise ValueError(f"data.class_list names {len(unknown)} classes that {name} lacks: {unknown[:_LISTED]}")
        classes, rows = class_list, [row for row in rows if row[1] in class_list]
    if not rows:
        raise ValueError(f"{name}: its lists in {root} name no {split} images; unpack its archives anew")
    paths = [os.path.join(root, path) for path, _ in rows]
    is_there = [os.path.isfile(path) for path in paths]
    missing = tuple(path for path, there in zip(paths, is_there, strict=True) if not there)
    if len(missing) > broken_limit * len(paths) or len(missing) == len(paths):
        raise ValueError(
            f"{name}: {missing_text(missing, len(paths))}; data.broken_limit {broken_limit:g} allows fewer: fetch "
            f"them, or point data.root, now {root}, at the folder that holds the whole set"
        )
    there_names = [each for (_, each), there in zip(rows, is_there, strict=True) if there]
    kept = [path for path, there in zip(paths, is_there, strict=True) if there]
    return replace(file_images(name, kept, there_names, classes), missing=missing)


def missing_text(missing: Sequence[str], number: int) -> str:
    """The number of a set's listed images that are not there, and the first five, in words."""
    first = ", ".join(missing[:_LISTED]) + (", ..." if len(missing) > _LISTED else "")
    return f"{len(missing):,} of {number:,} images that its lists name are not there: {first}"


def count_remark(name: str, split: str, number: int) -> str | None:
    """The number of a set's images where it is not the published one: ``pets: 3,600 of 3,680 training images``.

    Example:
        >>> count_remark("pets", "labelled", 3600), count_remark("pets", "test", 3669)
        ('pets: 3,600 of 3,680 training images', None)
    """
    known = TRANSFER_SETS[name]
    published = {"test": known.test, "validation": known.validation}.get(split, known.train + known.validation)
    if number == published:
        return None
    return f"{name}: {number:,} of {published:,} {split if split in ('test', 'validation') else 'training'} images"


def _food101(root: Path) -> _Lists:
    def listed(part: str) -> list[tuple[str, str]]:
        file = root / "food-101/meta" / f"{part}.json"
        if file.is_file():
            try:
                names = [name for each in json.loads(read_text(file)).values() for name in each]
            except json.JSONDecodeError as error:
                raise ValueError(f"{file} is no JSON ({error}); unpack it anew") from error
        else:
            names = _lines(file.with_suffix(".txt"), "food-101/meta of the archive has it")
        return [(f"food-101/images/{name}.jpg", name.partition("/")[0]) for name in names]

    train = listed("train")
    return _Lists(ordered({name for _, name in train}), train, listed("test"))


def _birdsnap(root: Path) -> _Lists:
    folder = root / "birdsnap"

    def table(name: str, *columns: str) -> list[tuple[str, ...]]:
        file = folder / name
        lines = "\n".join(_lines(file, "birdsnap.tgz has species.txt, images.txt and test_images.txt"))
        rows = list(csv.DictReader(io.StringIO(lines), delimiter="\t", quoting=csv.QUOTE_NONE))
        if not rows or any(row.get(column) is None for row in rows for column in columns):
            raise ValueError(f"{file} is no table with tabs of the columns {', '.join(columns)}; fetch it anew")
        return [tuple(row[column] for column in columns) for row in rows]

    images = "birdsnap/images" if (folder / "images").is_dir() else "birdsnap"
    species = {number: name for number, name in table("species.txt", "id", "common")}
    tested = {path for (path,) in table("test_images.txt", "path")}
    rows = table("images.txt", "path", "species_id")
    file = folder / "images.txt"
    named = [(path, f"{images}/{path}", _looked_up(species, number, file)) for path, number in rows]
    train = [(full, name) for path, full, name in named if path not in tested]
    return _Lists(list(species.values()), train, [(full, name) for path, full, name in named if path in tested])


def _sun397(root: Path) -> _Lists:
    where = "SUN397's splits come in a separate archive; put it beside ClassName.txt"
    classes = [line[3:] for line in _lines(root / "SUN397/ClassName.txt", "SUN397.tar.gz has it")]

    def listed(name: str) -> list[tuple[str, str]]:
        file = root / "SUN397" / name
        known = {each: each for each in classes}
        lines = _lines(file, where)
        return [(f"SUN397{line}", _looked_up(known, line[3:].rpartition("/")[0], file)) for line in lines]

    return _Lists(classes, listed("Training_01.txt"), listed("Testing_01.txt"))


def _cars(root: Path) -> _Lists:
    folder = root / "stanford_cars"
    devkit = folder / "devkit"
    names = [str(name) for name in _mat(devkit / "cars_meta.mat", "class_names", "car_devkit.tgz has it")]
    classes = dict(enumerate(names, start=1))
    test = folder / "cars_test_annos_withlabels.mat"

    def annotated(file: Path, images: str, where: str) -> list[tuple[str, str]]:
        rows = _mat(file, "annotations", where)
        if not {"fname", "class"} <= set(rows.dtype.names or ()):
            raise ValueError(f"the annotations of {file} have no fields fname and class; fetch it anew")
        return [(f"stanford_cars/{images}/{row['fname']}", _looked_up(classes, row["class"], file)) for row in rows]

    return _Lists(
        names,
        annotated(devkit / "cars_train_annos.mat", "cars_train", "car_devkit.tgz has it"),
        annotated(
            test if test.is_file() else devkit / test.name,
            "cars_test",
            "the labels of the test images come in a file of their own; put it into stanford_cars",
        ),
    )


def _aircraft(root: Path) -> _Lists:
    data = root / "fgvc-aircraft-2013b/data"
    where = "the archive fgvc-aircraft-2013b.tar.gz has it"
    classes = _lines(data / "variants.txt", where)
    known = {each: each for each in classes}

    def listed(part: str) -> list[tuple[str, str]]:
        file = data / f"images_variant_{part}.txt"
        rows = [line.partition(" ") for line in _lines(file, where)]
        images = "fgvc-aircraft-2013b/data/images"
        return [(f"{images}/{image}.jpg", _looked_up(known, variant, file)) for image, _, variant in rows]

    return _Lists(classes, listed("train"), listed("test"), listed("val"))


def _voc2007(root: Path) -> _Lists:
    def listed(part: str) -> list[tuple[str, None]]:
        return [(os.path.join(VOC_FOLDER, "JPEGImages", f"{image}.jpg"), None) for image in voc_labels(root, part)]

    return _Lists((), listed("train"), listed("test"), listed("val"))


def _dtd(root: Path) -> _Lists:
    folder = "dtd/dtd" if (root / "dtd/dtd").is_dir() else "dtd"

    def listed(part: str) -> list[tuple[str, str]]:
        lines = _lines(root / folder / "labels" / f"{part}1.txt", "the folder labels of dtd-r1.0.1.tar.gz has it")
        return [(f"{folder}/images/{line}", line.partition("/")[0]) for line in lines]

    train = listed("train")
    return _Lists(ordered({name for _, name in train}), train, listed("test"), listed("val"))


def _pets(root: Path) -> _Lists:
    folder = root / "oxford-iiit-pet"

    def listed(part: str) -> list[tuple[str, int]]:
        file = folder / "annotations" / f"{part}.txt"
        rows = [line.split() for line in _lines(file, "annotations.tar.gz has it; unpack it beside the images")]
        for row in rows:
            if len(row) < 2 or not row[1].isdecimal():
                raise ValueError(f"{file}: {' '.join(row)!r:.80} is no image and the number of a class; fetch it anew")
        return [(row[0], int(row[1])) for row in rows]

    parts = [listed("trainval"), listed("test")]
    breeds = {number: image.rpartition("_")[0] for part in parts for image, number in part}
    train, test = (
        [(f"oxford-iiit-pet/images/{image}.jpg", breeds[number]) for image, number in part] for part in parts
    )
    return _Lists([breeds[number] for number in sorted(breeds)], train, test)


def _caltech101(root: Path) -> _Lists:
    below = next((each for each in ("caltech101", "caltech-101") if (root / each).is_dir()), "caltech101")
    folder = root / below / "101_ObjectCategories"
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not there: unpack 101_ObjectCategories.tar.gz in {folder.parent}")
    classes = sorted(each.name for each in folder.iterdir() if each.is_dir())
    train: list[tuple[str, str]] = []
    test: list[tuple[str, str]] = []
    for name in classes:
        images = sorted(each.name for each in (folder / name).iterdir() if each.suffix == ".jpg")
        # Drawn by the name of the class, so that no other class's images matter.
        order = permutation(0, (_CALTECH_STREAM, zlib.crc32(name.encode())), len(images)).tolist()
        drawn = {images[at] for at in order[:_CALTECH_TRAIN]}
        for image in images:
            (train if image in drawn else test).append((f"{below}/101_ObjectCategories/{name}/{image}", name))
    return _Lists(classes, train, test)


def _flowers102(root: Path) -> _Lists:
    folder = root / "flowers-102"
    where = "setid.mat and imagelabels.mat are files of their own; put them beside the folder jpg"
    labels = _mat(folder / "imagelabels.mat", "labels", where)
    known = {number: str(label) for number, label in enumerate(labels.tolist(), start=1)}

    def listed(field: str) -> list[tuple[str, str]]:
        file = folder / "setid.mat"
        numbers = _mat(file, field, where).tolist()
        return [(f"flowers-102/jpg/image_{each:05d}.jpg", _looked_up(known, each, file)) for each in numbers]

    return _Lists(ordered(set(known.values())), listed("trnid"), listed("tstid"), listed("valid"))


# Paper: Kornblith et al., 2019, arXiv 1805.08974, table 1; the images for validation as the sets' own lists have them.
TRANSFER_SETS: dict[str, TransferSet] = {
    "food101": TransferSet("top1", 101, 75_750, 25_250, read=_food101),
    "cifar10": TransferSet("top1", 10, 50_000, 10_000),
    "cifar100": TransferSet("top1", 100, 50_000, 10_000),
    "birdsnap": TransferSet("top1", 500, 47_386, 2_443, read=_birdsnap),
    "sun397": TransferSet("top1", 397, 19_850, 19_850, read=_sun397),
    "cars": TransferSet("top1", 196, 8_144, 8_041, read=_cars),
    "aircraft": TransferSet("mean_per_class", 100, 3_334, 3_333, 3_333, read=_aircraft),
    "voc2007": TransferSet("map11", 20, 2_501, 4_952, 2_510, read=_voc2007),
    "dtd": TransferSet("top1", 47, 1_880, 1_880, 1_880, read=_dtd),
    "pets": TransferSet("mean_per_class", 37, 3_680, 3_669, read=_pets),
    "caltech101": TransferSet("mean_per_class", 102, 3_060, 6_084, read=_caltech101),
    "flowers102": TransferSet("mean_per_class", 102, 1_020, 6_149, 1_020, read=_flowers102),
}


def _lines(file: Path, where: str) -> list[str]:
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there: {where}")
    return [line.strip() for line in read_text(file).splitlines() if line.strip()]


def _mat(file: Path, field: str, where: str) -> Any:
    """A field of a file of MATLAB, as an array of one axis."""
    from scipy.io.matlab import MatReadError, loadmat  # only two sets need it

    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there: {where}")
    try:
        content = loadmat(file, squeeze_me=True)  # type: ignore[no-untyped-call]  # SciPy's is untyped
        return np.atleast_1d(content[field])
    except (MatReadError, ValueError, LookupError, TypeError, OSError) as error:
        raise ValueError(f"{file} has no readable field {field} ({error}); fetch it anew") from error


def _looked_up(known: dict[Any, str], key: Any, file: Path) -> str:
    if key not in known:
        raise ValueError(f"{file} names {key}, which is none of {len(known)} from {min(known)} to {max(known)}")
    return known[key]
