"""The node ``data`` of a configuration, and the source that it opens."""

import glob
import hashlib
import importlib.resources
import logging
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from jaxtyping import Int8, Int64
from torch import Tensor

from ssl_core import distributed
from ssl_core.address import is_address, is_of_web
from ssl_core.data.decode import suffixes
from ssl_core.data.files import (
    FileImages,
    check_splits,
    concatenated,
    folder_images,
    inner_folder,
    read_text,
    split_folder,
    unread_kinds,
)
from ssl_core.data.labels import relabelled
from ssl_core.data.lists import listed_images
from ssl_core.data.local_cache import LocalCache, open_cache
from ssl_core.data.named import IN_MEMORY_NAMES, digit_images, torchvision_images
from ssl_core.data.order import Order
from ssl_core.data.parquet import ParquetImages, parquet_images
from ssl_core.data.pixels import BrokenImageError
from ssl_core.data.remote import BLOCK_BYTES, AnyPath, RemotePath, matching, path_of
from ssl_core.data.shards import in_order, shards_in, split_shards
from ssl_core.data.source import ImageSource, LazyImages, MemoryImages, hold_in_memory, listing
from ssl_core.data.tar import TarImages, tar_images
from ssl_core.data.transfer_sets import TRANSFER_SETS, count_remark, missing_text, transfer_images
from ssl_core.data.voc import voc_labels
from ssl_core.given import is_given
from ssl_core.philox import permutation
from ssl_core.size import bytes_of

logger = logging.getLogger(__name__)

Images: TypeAlias = MemoryImages | FileImages | ParquetImages | TarImages

_FOLDER_NAMES = ("imagenet", "tiny_imagenet")
NAMES = (*IN_MEMORY_NAMES, *_FOLDER_NAMES, *(name for name in TRANSFER_SETS if TRANSFER_SETS[name].read is not None))
SPLITS = ("train", "test", "labelled")

_HOLDOUT_STREAM = (0x686F6C64, 0)  # "hold"
_NUM_PROBED = 16
_ARCHIVES = (".zip", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")


@dataclass(frozen=True)
class DataConfig:
    """The images, and how they are read.

    Attributes:
        source: images by name (digits, cifar10, cifar100, stl10, imagenet, tiny_imagenet, food101, birdsnap, sun397,
            cars, aircraft, voc2007, dtd, pets, caltech101, flowers102) or by path (a folder, a list file .txt, .csv or
            .tsv, a parquet or tar shard or pattern, a folder of shards), or a list of paths of one kind. A path may be
            an address, such as s3://bucket/photos, gs:// or hf://.
        test_source: name or path of the test images; None takes the test split of ``source``.
        holdout: fraction of a source without a test split that is kept for testing.
        root: folder of a named set, and of relative paths.
        download: permission to fetch CIFAR or STL-10 into ``root`` if it is not there.
        stl10_split: part of STL-10 to pretrain on: unlabeled, train or train+unlabeled.
        class_list: classes to read, in their order: imagenet100, or a file with a class folder, or a named set's class,
            on each line.
        image_column: parquet column of image bytes, or extension of the images in tars; None takes the only one there
            is, and in tars the one without a dot.
        label_column: column of labels in parquet and in lists with a header, or field of ``.json`` in tars, where
            ``label`` is read from ``.cls`` first. Without such a column there are no labels, except where a list has
            just one column beside its paths.
        channels: number of channels of all images; None takes the most that a sample of the images has.
        mean: mean of each channel, or one number for all, of pixels in [0, 1], for normalization; None takes the set's
            published value or measures it.
        std: standard deviation of each channel, as ``mean``.
        workers: number of processes that decode images and make views; 0 does both in the main process. With the
            renderer ``device`` they only decode, and are not needed where images are held in memory and fit on the
            device.
        renderer: maker of the views: ``device``, on the GPU that trains; ``cpu``, compiled kernels; ``reference``,
            torch operations, which define the picture and are slow; ``auto``, the first of these that can run. All
            make the same picture within rounding.
        memory_gib: largest size of the decoded images that are held in memory, in each process (CIFAR and STL-10
            always are).
        broken_limit: largest fraction of images that may be unreadable.
        changed: answer where a run is to continue with other images than before: ``refuse``, or ``accept``, which keeps
            the run's normalization.
        read: order in which training reads the images: ``random``; or ``sequential``, of tars alone, a few shards at a
            time, for disks and object stores that read a shard faster than its images. None is then held in memory.
        window: number of shards whose images ``sequential`` mixes.
        cache: folder for the index of tars in a bucket, and of those whose own folder cannot be written.
        local_cache: folder for what is read from a bucket, which processes and runs may share; None keeps nothing.
        local_cache_size: largest size of that folder, such as 200GB; what was used last is kept.
        scaled_decode: whether training decodes a JPEG at a half, a quarter or an eighth of its size, where even the
            smallest crop of a view then still has as many pixels as the view, so that nothing is enlarged by it.
    """

    source: str | list[str] = "digits"
    test_source: str | list[str] | None = None
    holdout: float | None = None
    root: str | None = None
    download: bool = False
    stl10_split: str = "unlabeled"
    class_list: str | None = None
    image_column: str | None = None
    label_column: str = "label"
    channels: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    workers: int = 2
    renderer: Literal["auto", "reference", "cpu", "device"] = "auto"
    memory_gib: float = 4.0
    broken_limit: float = 0.01
    changed: Literal["refuse", "accept"] = "refuse"
    read: Literal["random", "sequential"] = "random"
    window: int = 16
    cache: str = "~/.cache/ssl-core"
    local_cache: str | None = None
    local_cache_size: str = "100GB"
    scaled_decode: bool = True

    def __post_init__(self) -> None:
        if self.read == "random" and self.window != DataConfig.window:
            raise ValueError(f"data.window {self.window} has no effect with data.read random; leave it out")
        if self.window < 1:
            raise ValueError(f"data.window must be at least 1, got {self.window}")
        bytes_of(self.local_cache_size, "data.local_cache_size")
        if self.local_cache is None and self.local_cache_size != DataConfig.local_cache_size:
            raise ValueError(
                f"data.local_cache_size {self.local_cache_size} has no effect without data.local_cache; leave it out"
            )
        if (self.mean is None) != (self.std is None):
            raise ValueError(f"data.mean {self.mean} and data.std {self.std} go together: set both or none")
        # NaN compares as false; nothing in [0, 1] has a mean or a deviation above 1.
        if not all(0 <= mean <= 1 for mean in self.mean or ()) or not all(0 < std <= 1 for std in self.std or ()):
            raise ValueError(
                f"data.mean {self.mean} must lie in [0, 1] and data.std {self.std} be positive and at most 1, as those "
                "of pixels in [0, 1]; divide values for 8-bit pixels by 255"
            )


def open_source(config: DataConfig, *, split: str = "train", at_least: int | None = None) -> ImageSource:
    """The images of one split, held decoded in memory where they fit.

    Args:
        config: settings of the data.
        split: name of the split: ``train``; ``test``; or ``labelled``, the training images of a probe, which differ
            from ``train`` for STL-10 only.
        at_least: number of pixels that each side of a JPEG must keep where ``scaled_decode`` allows a smaller one, see
            `ssl_core.views.shortest_side`; None decodes it whole.

    Raises:
        FileNotFoundError: for a path that does not exist.
        RemoteError: for an address that cannot be read.
        ValueError: for a source that cannot be told, is empty, has more broken images than allowed, or has no
            such split.

    Example:
        >>> source = open_source(DataConfig(source="digits"), split="test")
        >>> len(source), source.image(0).shape
        (800, torch.Size([1, 32, 32]))
    """
    return decoded(open_encoded(config, split), config, split=split, at_least=at_least)


def decoded(images: Images, config: DataConfig, *, split: str = "train", at_least: int | None = None) -> ImageSource:
    """The images of :func:`open_source`, made of images that are open already."""
    if isinstance(images, MemoryImages):
        return images
    # When the training images were opened, and by the first process.
    is_said = (split == "test" and config.holdout is not None) or not distributed.is_main()
    if isinstance(images, FileImages | TarImages) and not is_said and (kinds := unread_kinds(images.ignored)):
        logger.warning("%s: %s", images.name, kinds)
    missing = images.missing if isinstance(images, FileImages) else ()
    if (remark := split_remark(config, split, len(images), missing)) and distributed.is_main():
        logger.warning("%s", remark)
    if config.scaled_decode and at_least is not None:
        logger.info("%s: no view needs JPEGs of more than %d pixels a side (data.scaled_decode)", images.name, at_least)
        images = replace(images, at_least=at_least)
    if config.read == "random":
        size_gib = _decoded_bytes(images) / 2**30
        if size_gib <= config.memory_gib:
            return hold_in_memory(images, workers=config.workers, broken_limit=config.broken_limit)
        logger.info(
            "%s: about %.1f GiB decoded, more than data.memory_gib %g; images are decoded when they are needed",
            images.name,
            size_gib,
            config.memory_gib,
        )
    if (remark := _cache_remark(config, images)) and distributed.is_main():
        logger.warning("%s", remark)
    return LazyImages(images, broken_limit=config.broken_limit)


def _cache_remark(config: DataConfig, images: Images) -> str | None:
    """What makes the reading of remote tars slow, in words; None where nothing does."""
    if not isinstance(images, TarImages) or not is_address(images.shards[0].path):
        return None
    is_sequential = config.read == "sequential"
    if images.local is None:
        slow = "data.read sequential asks for image by image, as random does: set data.local_cache, which gets blocks"
        return f"{images.name}: {slow}" if is_sequential else None
    sizes = images.shard_bytes()
    needed = sum(sorted(sizes)[-config.window :] if is_sequential else sizes)
    if needed <= images.local.limit_bytes:
        return None
    what = f"{config.window} shards of a window" if is_sequential else "shards"
    remedy = "lower data.window" if is_sequential else "leave the cache out, or read by --data.read sequential"
    return (
        f"{images.name}: the {what} take {needed / 1e9:,.1f} GB, more than data.local_cache_size "
        f"{config.local_cache_size}: images whose block is not there any more cost a block of "
        f"{BLOCK_BYTES / 2**20:g} MiB; raise it, or {remedy}"
    )


def reading_order(config: DataConfig, images: Images) -> Order | None:
    """The order in which training reads the images, as ``data.read`` says; None is at random.

    Raises:
        ValueError: for images that are not in tars and are to be read in the order of shards.
    """
    if config.read == "random":
        return None
    if not isinstance(images, TarImages):
        raise ValueError(
            f"data.read sequential goes through tar shards, and {images.name} is none: ssl-core data pack writes them"
        )
    return Order(images.shard_lengths(), config.window)


def without_foreign_classes(config: DataConfig, given: Collection[str] | None) -> DataConfig:
    """The settings, without a recipe's class list where the user gives a source that has none of its folders.

    A source with some of the folders is an incomplete one of the recipe's kind, and refused when it is opened.

    Args:
        config: settings of the data.
        given: options that the user has set; None is all.
    """
    name, source = config.class_list, config.source
    if name is None or is_given(given, "data.class_list") or not is_given(given, "data.source"):
        return config
    folders: list[AnyPath] = []
    if isinstance(source, list) or source not in NAMES:
        folders = [inner_folder(path) for path in _source_paths(source, config) if path.is_dir()]
    elif source in _FOLDER_NAMES:
        return config
    splits = [split for folder in folders if (split := split_folder(folder, "train")) is not None]
    if any((split / each).is_dir() for split in splits for each in _class_list(name)):
        return config
    logger.info("data.class_list: null instead of %s, for %s has none of its folders", name, source)
    return replace(config, class_list=None)


def split_remark(config: DataConfig, split: str, number: int, missing: Sequence[str] = ()) -> str | None:
    """The difference between a split of a named set and what is published of it, in words; None where there is none.

    Args:
        config: settings of the data.
        split: name of the split: ``train``, ``labelled`` or ``test``.
        number: number of images.
        missing: images that the set's lists name and that are not there.
    """
    if not isinstance(config.source, str) or config.source not in TRANSFER_SETS:
        return None
    if split == "test" and config.test_source is not None:
        return None
    remark = count_remark(config.source, split, number)
    return f"{remark}; {missing_text(missing, number + len(missing))}" if missing else remark


def official_validation(config: DataConfig, source: ImageSource) -> Int64[Tensor, " v"] | None:
    """Indices of the labeled images that the set's own lists keep for validation; None where these name none.

    Args:
        config: settings of the data.
        source: images of the split ``labelled``, as :func:`open_source` returns them.
    """
    known = TRANSFER_SETS.get(config.source) if isinstance(config.source, str) else None
    if known is None or known.validation == 0:
        return None
    images = _split(config.source, config, "validation")
    assert images is not None
    held_out = {images.identifier(index) for index in range(len(images))}
    return torch.tensor([index for index in range(len(source)) if source.identifier(index) in held_out])


def multi_labels(config: DataConfig, source: ImageSource) -> Int8[Tensor, "n c"]:
    """The classes of the 20 of VOC 2007 that each image shows, see :func:`ssl_core.data.voc.voc_labels`.

    Args:
        config: settings of the data, whose ``source`` is voc2007.
        source: images of any split, as :func:`open_source` returns them.
    """
    root = _here("data.root", _root("voc2007", config))
    values = {name: row for part in ("train", "val", "test") for name, row in voc_labels(root, part).items()}
    rows = [values[Path(source.identifier(index)).stem] for index in range(len(source))]
    return torch.tensor(rows, dtype=torch.int8)


def identity(images: Images, labels: Tensor | None = None) -> dict[str, int | str]:
    """Values by which images are known to be the same as before: their number, that of their classes, and a digest.

    Args:
        images: images of any split.
        labels: their labels, for what learns from them, which have a digest too; None for what does not.
    """
    known: dict[str, int | str] = {
        "images": len(images),
        "classes": len(images.classes or ()),
        "digest": images.digest(),
    }
    if labels is None:
        return known
    return {**known, "labels": hashlib.blake2b(labels.numpy().tobytes(), digest_size=16).hexdigest()}


def open_encoded(config: DataConfig, split: str = "train") -> Images:
    """The images of one split before any is decoded, with their number of channels settled."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is none of {', '.join(SPLITS)}")
    train = _split(config.source, config, "train" if split == "test" else split)
    assert train is not None  # every source has training images
    train = _without_single_class(train)
    channels = config.channels or _most_channels(train)
    if split == "test":
        images = _test_images(config, train)
    elif config.holdout is not None:
        images = train.subset(_holdout(config, train)[1])
    else:
        images = train
    return replace(images, channels=channels)


def open_test(config: DataConfig) -> Images | None:
    """The test images before any is decoded; None where the settings name none and the source has no test split.

    Raises:
        ValueError: as :func:`open_encoded`, for test images that are named and cannot be opened.
    """
    is_named = config.test_source is not None or config.holdout is not None
    if not is_named and _split(config.source, config, "test") is None:
        return None
    return open_encoded(config, "test")


def _test_images(config: DataConfig, train: Images) -> Images:
    if config.test_source is not None:
        test = _split(config.test_source, config, "test") or _split(config.test_source, config, "train")
    elif config.holdout is not None:
        return train.subset(_holdout(config, train)[0])
    else:
        test = _split(config.source, config, "test")
    if test is None:
        raise ValueError(
            f"data.source {config.source!r} has no test split; give data.test_source, or hold some of it out "
            "with data.holdout 0.1"
        )
    if train.classes is None or test.classes is None:
        return _without_single_class(test)
    # Classes that training images do not have come last: features are asked for all images, a kNN refuses these.
    classes = (*train.classes, *(name for name in test.classes if name not in train.classes))
    return replace(test, labels=relabelled(test, classes), classes=classes)


def _without_single_class(images: Images) -> Images:
    """The images, without labels where their class is only one: a folder inside a folder, nothing to tell apart."""
    if images.classes is None or len(images.classes) > 1:
        return images
    return replace(images, labels=torch.full_like(images.labels, -1), classes=None)


def _holdout(config: DataConfig, train: Images) -> tuple[Int64[Tensor, " test"], Int64[Tensor, " train"]]:
    """Indices of the held-out images and of the others."""
    assert config.holdout is not None
    if config.test_source is not None or _split(config.source, config, "test") is not None:
        raise ValueError(f"data.holdout {config.holdout}: there already is a test split; remove one of the two")
    num_test = round(config.holdout * len(train))
    if not 0 < num_test < len(train):
        raise ValueError(f"data.holdout {config.holdout} of {len(train)} images leaves no test or no training image")
    order = permutation(0, _HOLDOUT_STREAM, len(train))
    return order[:num_test].sort().values, order[num_test:].sort().values


def _split(source: str | list[str], config: DataConfig, split: str) -> Images | None:
    """A source's images of a split; None if it has no such split."""
    if isinstance(source, str) and source in NAMES:
        return _named_images(source, config, split)
    if config.download:
        raise ValueError(f"data.download works for {', '.join(IN_MEMORY_NAMES[1:])}, not for {source!r}")
    paths = _source_paths(source, config)
    kinds = {_kind(path) for path in paths}
    if len(kinds) != 1:
        raise ValueError(f"data.source {source!r} mixes {' and '.join(sorted(kinds))}; give paths of one kind")
    return _path_images(paths, kinds.pop(), config, "train" if split == "labelled" else split)


def _named_images(name: str, config: DataConfig, split: str) -> Images | None:
    if name in IN_MEMORY_NAMES and config.class_list is not None:
        raise ValueError(f"data.class_list {config.class_list!r} needs class folders, which {name} does not have")
    if name == "digits":
        return digit_images(split)
    root = _root(name, config)
    if name in IN_MEMORY_NAMES:
        return torchvision_images(
            name, _here("data.root", root), split, download=config.download, stl10_split=config.stl10_split
        )
    if config.download:
        raise ValueError(f"data.download: {name} is not fetched; point data.root at its folder")
    if name not in _FOLDER_NAMES:
        classes = None if config.class_list is None else _class_list(config.class_list)
        return transfer_images(
            name, _here("data.root", root), split, class_list=classes, broken_limit=config.broken_limit
        )
    folder = _place(root)
    if split_folder(folder, "test") is None:
        raise FileNotFoundError(f"data.root {root!r} is not {name}: it needs the folders train and val")
    return _path_images([folder], "folder", config, "train" if split == "labelled" else split)


def _root(name: str, config: DataConfig) -> str:
    if config.root is None:
        folder = f"; the folder of that name here is ./{name}" if os.path.isdir(name) else ""
        raise ValueError(f"data.source {name!r} needs data.root, the folder that holds it{folder}")
    return config.root


def _path_images(paths: Sequence[AnyPath], kind: str, config: DataConfig, split: str) -> Images | None:
    if config.class_list is not None and kind != "folder":
        raise ValueError(f"data.class_list {config.class_list!r} needs class folders, not a {kind}")
    local = None
    if kind == "list" or isinstance(paths[0], RemotePath):  # a list on this machine may name files in a bucket
        local = _local_cache(config)
    elif config.local_cache is not None:
        logger.info("%s is on this machine: data.local_cache %s keeps nothing of it", paths[0], config.local_cache)
    if kind in ("parquet", "tar"):
        shards = split_shards(paths, split, f".{kind}")
        if not shards:
            return None
        if kind == "tar":
            return tar_images(
                shards,
                image_column=config.image_column,
                label_column=config.label_column,
                cache=_here("data.cache", config.cache),
                workers=config.workers,
                local=local,
            )
        return parquet_images(
            shards,
            image_column=config.image_column,
            label_column=config.label_column,
            memory_bytes=config.memory_gib * 2**30,
            local=local,
        )
    if kind == "list":
        lists = [listed_images(path, label_column=config.label_column, split=split) for path in paths]
        read = [images for images in lists if images is not None]
        return replace(concatenated(read), cache=local) if read else None
    if config.class_list is None:
        paths = [inner_folder(path) for path in paths]
        for path in paths:
            check_splits(path)
    folders = [folder for path in paths if (folder := split_folder(path, split)) is not None]
    if not folders:
        return None
    classes = None if config.class_list is None else _class_list(config.class_list)
    return replace(concatenated([folder_images(folder, class_list=classes) for folder in folders]), cache=local)


def _local_cache(config: DataConfig) -> LocalCache | None:
    if config.local_cache is None:
        return None
    size = bytes_of(config.local_cache_size, "data.local_cache_size")
    return open_cache(_here("data.local_cache", config.local_cache), size, least_bytes=BLOCK_BYTES)


def _source_paths(source: str | list[str], config: DataConfig) -> list[AnyPath]:
    return [path for each in ([source] if isinstance(source, str) else source) for path in _paths(each, config.root)]


def _paths(source: str, root: str | None) -> list[AnyPath]:
    """The files or folders that a path or a pattern names."""
    path = _place(source) if root is None or is_address(source) else _place(root) / source
    if path.exists():
        return [path]
    if isinstance(path, RemotePath):
        if found := in_order(matching(path.url)) if glob.has_magic(path.url) else []:
            return found
        raise FileNotFoundError(f"nothing is at {path}; look at the name, and whether this machine may list it")
    if glob.has_magic(str(path)):
        if names := sorted(glob.glob(str(path), recursive=True)):
            return [Path(each) for each in names]
        raise FileNotFoundError(f"no file matches {str(path)!r}")
    where = "" if path.is_absolute() else f" in {Path.cwd()}"
    raise FileNotFoundError(f"{str(path)!r} does not exist{where}; it is no name either (names: {', '.join(NAMES)})")


def _here(setting: str, name: str) -> Path:
    """A folder that has to be on this machine."""
    if is_address(name) and not (name.startswith("file:") or is_of_web(name)):
        raise ValueError(f"{setting} {name!r} is an address: name a folder of this machine")
    return Path(str(_place(name)))


def _place(name: str) -> AnyPath:
    """A path as this system understands it, or an address."""
    if is_of_web(name):
        raise ValueError(f"{name!r} is an address of the web, and images are read from files and buckets: download it")
    if is_address(name):
        return path_of(name)
    if os.name != "nt" and re.match(r"[A-Za-z]:[\\/]|\\\\", name):
        raise ValueError(f"{name!r} is a path of Windows; under WSL, C:\\photos is /mnt/c/photos")
    return Path(os.path.expanduser(name))


def _kind(path: AnyPath) -> str:
    if path.is_dir():
        return next((kind for kind in ("parquet", "tar") if shards_in(path, f".{kind}")), "folder")
    suffix = path.suffix.lower()
    kind = {".parquet": "parquet", ".tar": "tar", ".txt": "list", ".csv": "list", ".tsv": "list"}.get(suffix)
    if kind is None:
        what = "is not a folder, a list file (.txt, .csv, .tsv), a parquet file or a tar"
        if suffix in _ARCHIVES:
            what = "is an archive: unpack it and give the folder, or of a compressed tar the tar (.tar)"
        elif suffix in suffixes():
            what = "is one image: give its folder, or a list of images (.txt)"
        raise ValueError(f"{str(path)!r} {what}")
    return kind


def _class_list(name: str) -> list[str]:
    if name == "imagenet100":
        text = (importlib.resources.files("ssl_core.data") / "imagenet100.txt").read_text()
    else:
        text = read_text(_place(name))
    classes = [line.strip() for line in text.splitlines() if line.strip()]  # which may have blanks, as a car's
    if not classes or len(set(classes)) < len(classes):
        raise ValueError(f"data.class_list {name!r} must name each class once; it has {len(classes)} lines")
    return classes


def probed(images: Images) -> tuple[list[Tensor], list[str]]:
    """Some images evenly spaced over a source, and messages of those that are broken."""
    indices = torch.linspace(0, len(images) - 1, min(len(images), _NUM_PROBED)).round().long().tolist()
    readable, broken = [], []
    for index in indices:
        try:
            readable.append(images.image(index))
        except BrokenImageError as error:
            broken.append(str(error))
    return readable, broken


def _most_channels(images: Images) -> int:
    readable, broken = probed(images)
    if not readable:
        raise ValueError(f"none of {len(broken)} images tried of {images.name} can be read: {listing(broken)}")
    counts = {len(image) for image in readable}
    if len(counts) > 1:
        logger.info(
            "%s: images of %s channels; all are read with %d (data.channels)",
            images.name,
            " and ".join(str(count) for count in sorted(counts)),
            max(counts),
        )
    return max(counts)


def _decoded_bytes(images: Images) -> float:
    """Memory that all images would take, estimated from a few."""
    readable, _ = probed(images)
    sizes = [image.numel() * image.element_size() for image in readable]
    return len(images) * sum(sizes) / max(1, len(sizes))
