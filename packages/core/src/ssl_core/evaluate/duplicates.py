"""Images of a source that are there more than once, that are in a test set too, or that are like no other.

``ssl-core duplicates SOURCE [--model RUN] [--against TEST]``. Three kinds of the same image: the same bytes, the same
pixels (a PNG and a BMP of one picture), and nearly the same features. An image and its mirror image have the same
features here, for the mean of both goes into the comparison.
"""

import hashlib
import os
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from ssl_core import distributed
from ssl_core.config import read_config
from ssl_core.data import DataConfig, Images, MemoryImages, decoded, open_encoded, open_test
from ssl_core.data.chosen import chosen_source, write_chosen
from ssl_core.data.pixels import BrokenImageError
from ssl_core.data.workers import worker_map
from ssl_core.evaluate.features import own_share
from ssl_core.evaluate.near_duplicates import NEIGHBOURS, false_negatives, near_duplicates, outliers, whitening
from ssl_core.evaluate.search import nearest_others, search
from ssl_core.evaluate.subject import Subject, load_subject
from ssl_core.files import write_json
from ssl_core.folder import check_writable
from ssl_core.progress import progress_bar

_CHUNK = 64
_OUTLIERS, _SHOWN = 20, 5


class _Print(NamedTuple):
    """The fingerprint of an image.

    Attributes:
        encoded: hash of its bytes; None where it has none.
        pixels: hash of its pixels, their shape and type.
        size: number of its pixels.
    """

    encoded: bytes | None
    pixels: bytes
    size: int


@dataclass(frozen=True)
class Copy:
    """An image that is the same as another.

    Attributes:
        image: index of the image.
        of: index of the other.
        by: what is the same: ``bytes``, ``pixels`` or ``features``, the first that is.
        cosine: cosine of their whitened features; None where the pixels are the same.
    """

    image: int
    of: int
    by: str
    cosine: float | None = None


class _Mirrored(nn.Module):
    """An encoder whose features of an image and of its mirror image are the same."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n f"]:
        features: Tensor = (self.encoder(images) + self.encoder(images.flip(-1))) / 2
        return features


def find_duplicates(
    data: DataConfig,
    *,
    model: str | None = None,
    against: str | None = None,
    threshold: float | None = None,
    out: str = "duplicates",
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """Find images that are there twice, that are in a test set too, or that are like no other; list the rest.

    Several processes share the images; the first one looks for neighbors among their features.

    Args:
        data: images to look at.
        model: run directory, ``backbone.safetensors`` or ``timm:NAME`` by whose features near-duplicates and outliers
            are found; None finds the same bytes and the same pixels.
        against: name or path of test images that should not be among them.
        threshold: least cosine of near-duplicates; None takes one from the distances of all images, and prints it.
        out: folder of ``duplicates.json`` and of ``kept``, the source without duplicates.
        device: device that computes the features.
        progress: whether bars are shown.

    Returns:
        The content of ``duplicates.json``, in the first process.

    Raises:
        FileNotFoundError: for a path that does not exist.
        OSError: for a folder that cannot be written.
        ValueError: for one image alone, test images that are the same source, and what does not fit together.
    """
    if threshold is not None and model is None:
        raise ValueError(f"threshold {threshold:g} is for features: give the model whose features are compared")
    if threshold is not None and not 0 < threshold <= 1:
        raise ValueError(f"threshold must be a cosine above 0 and at most 1, got {threshold:g}")
    folder = Path(out)
    check_writable(folder)
    subject = None
    if model is not None:
        subject = load_subject(model, data=data, device=device).fitted(None)
        subject = subject._replace(encoder=_Mirrored(subject.encoder))
        data = subject.data
    images = open_encoded(data)
    kept_path = chosen_source(images, folder / "kept")
    has_own_tests = data.holdout is None and open_test(data) is not None
    if len(images) == 1:
        raise ValueError(f"{images.name} is one image, and there is nothing to compare it with")
    test = (
        None if against is None else open_encoded(replace(data, test_source=against, channels=images.channels), "test")
    )
    if test is not None and _is_same(images, test):
        raise ValueError(f"against {against!r} is the source itself: give images that are not trained on")

    images, prints, broken = _readable(images, data.workers, "reading" if progress else "")
    copies = _same(prints)
    left_out = {copy.image for copy in copies}
    representatives = torch.tensor([index for index in range(len(images)) if index not in left_out])
    result: dict[str, Any] = {"source": images.name, "num_images": len(images), "broken": broken}
    if model is not None:
        result["model"] = model
    leaks, asked = list[Copy](), list[int]()
    if test is not None:
        test, test_prints, test_broken = _readable(test, data.workers, "reading tests" if progress else "")
        leaks = _same_as(test_prints, prints)
        result |= {"against": test.name, "test_broken": test_broken, "num_test": len(test)}
        asked = sorted(set(range(len(test))).difference(leak.image for leak in leaks))
    found = found_in_test = None
    if subject is not None and len(representatives) > 1:
        found = _features(subject, images.subset(representatives), "features" if progress else "")
        if test is not None and asked:
            found_in_test = _features(subject, test.subset(torch.tensor(asked)), "test features" if progress else "")
    if not distributed.goes_on_alone():
        return {}
    features = None
    if found is not None:
        features = _Compared(found, progress)
        sizes = [prints[index].size for index in representatives.tolist()]
        near = near_duplicates(features.unit, features.similarity, features.index, threshold=threshold, sizes=sizes)
        copies = _merged(copies, near.groups, features.unit, representatives.tolist())
        far = outliers(features.similarity, _OUTLIERS)
        result |= {
            "threshold": near.threshold,
            "reason": near.reason,
            "outliers": [images.identifier(int(representatives[index])) for index in far],
        }
    dropped = {copy.image for copy in copies}
    groups = Counter(copy.of for copy in copies)
    result["groups"] = _groups(copies, images)
    if subject is not None and (length := _queue_length(str(model))) is not None:
        others, own = false_negatives([1 + count for count in groups.values()], len(images), length)
        result |= {"queue_length": length, "false_negatives": others, "own_keys": own}
    if test is not None:
        if features is not None and found_in_test is not None:
            pairs = features.near(found_in_test, result["threshold"])
            leaks += [Copy(asked[row], int(representatives[index]), "features", cosine) for row, index, cosine in pairs]
        result["leaks"] = [
            {"test": test.identifier(leak.image), "train": images.identifier(leak.of), **_how(leak)} for leak in leaks
        ]
        dropped |= {leak.of for leak in leaks}
    result["num_kept"] = len(images) - len(dropped)
    folder.mkdir(parents=True, exist_ok=True)
    if kept_path is not None and result["num_kept"] and not isinstance(images, MemoryImages):
        kept = torch.tensor([index for index in range(len(images)) if index not in dropped], dtype=torch.int64)
        write_chosen(images, kept, kept_path)
        result["kept"] = str(kept_path)
        if has_own_tests:  # which a list of training images has not
            result["kept_test"] = data.test_source or data.source
    write_json(folder / "duplicates.json", result)
    print(_text(result, folder))
    return result


class _Fingerprints:
    """Takes the fingerprints of a range of images; of a broken one its message."""

    def __init__(self, images: Images) -> None:
        self._images = images

    def __call__(self, indices: range) -> list[_Print | str]:
        return [self._print(index) for index in indices]

    def _print(self, index: int) -> _Print | str:
        images = self._images
        try:
            encoded = None if isinstance(images, MemoryImages) else _digest(images.encoded(index))
            pixels = images.image(index).contiguous().numpy()
        except BrokenImageError as error:
            return str(error)
        shape = f"{pixels.shape} {pixels.dtype}".encode()
        return _Print(encoded, _digest(shape, pixels.tobytes()), pixels.shape[1] * pixels.shape[2])


def _digest(*parts: bytes) -> bytes:
    return hashlib.blake2b(b"\0".join(parts), digest_size=16).digest()


def _readable(images: Images, workers: int, progress: str) -> tuple[Images, list[_Print], list[str]]:
    """The images that can be read, their fingerprints, and messages of the others; each process reads a share."""
    own = own_share(len(images))
    chunks = [own[start : start + _CHUNK] for start in range(0, len(own), _CHUNK)]
    share: list[_Print | str] = []
    with progress_bar(len(own), "img", desc=progress, disable=not (progress and distributed.is_main())) as bar:
        for prints in worker_map(_Fingerprints(images), chunks, workers):
            share += prints
            bar.update(len(prints))
    found = [each for part in distributed.gather_objects(share) for each in part]
    whole = [index for index, each in enumerate(found) if not isinstance(each, str)]
    if not whole:
        raise ValueError(f"none of the {len(images)} images of {images.name} can be read, such as {found[0]}")
    broken = [each for each in found if isinstance(each, str)]
    return images.subset(torch.tensor(whole)), [each for each in found if not isinstance(each, str)], broken


def _is_same(images: Images, test: Images) -> bool:
    if len(images) != len(test):
        return False
    pairs = ((images.identifier(index), test.identifier(index)) for index in range(len(images)))
    same_files = all(os.path.realpath(ours) == os.path.realpath(theirs) for ours, theirs in pairs)
    # Of what has no paths the names say which it is.
    return same_files and (images.name == test.name or os.path.exists(images.identifier(0)))


def _same(prints: Sequence[_Print]) -> list[Copy]:
    """Of images with the same pixels, each but the first."""
    first: dict[bytes, int] = {}
    copies = []
    for index, each in enumerate(prints):
        of = first.setdefault(each.pixels, index)
        if of != index:
            copies.append(Copy(index, of, _by(each, prints[of])))
    return copies


def _same_as(test: Sequence[_Print], prints: Sequence[_Print]) -> list[Copy]:
    """Each pair of a test image and an image with its pixels."""
    by_pixels: dict[bytes, list[int]] = {}
    for index, each in enumerate(prints):
        by_pixels.setdefault(each.pixels, []).append(index)
    return [
        Copy(index, of, _by(each, prints[of]))
        for index, each in enumerate(test)
        for of in by_pixels.get(each.pixels, [])
    ]


def _by(one: _Print, other: _Print) -> str:
    return "bytes" if one.encoded is not None and one.encoded == other.encoded else "pixels"


def _features(subject: Subject, images: Images, progress: str) -> Float32[Tensor, "n f"]:
    return subject.together(decoded(images, subject.data), progress, whole="first").features


class _Compared:
    """Whitened features of some images, and the nearest of each."""

    def __init__(self, features: Float32[Tensor, "n f"], progress: bool) -> None:
        self._whitening = whitening(features)
        self.unit: Float32[Tensor, "n p"] = self._whitening.unit(features)
        k = min(NEIGHBOURS, len(features) - 1)
        self.similarity, self.index = nearest_others(self.unit, k, progress="neighbors" if progress else "")

    def near(self, tested: Float32[Tensor, "q f"], threshold: float) -> list[tuple[int, int, float]]:
        """The pairs of a test image and an image within the threshold, and their cosines."""
        similarity, index = search(self.unit, self._whitening.unit(tested), min(NEIGHBOURS, len(self.unit)))
        return [
            (row, int(index[row, place]), float(similarity[row, place]))
            for row, place in (similarity >= threshold).nonzero().tolist()
        ]


def _merged(
    copies: Sequence[Copy], groups: Sequence[Sequence[int]], unit: Tensor, numbers: Sequence[int]
) -> list[Copy]:
    """The copies of all kinds: of an image that is itself left out, to the one that is kept in its place."""
    kept: dict[int, tuple[int, float]] = {}
    for first, *others in groups:
        for row, cosine in zip(others, (unit[others] @ unit[first]).tolist(), strict=True):
            kept[numbers[row]] = (numbers[first], cosine)
    near = [Copy(image, of, "features", cosine) for image, (of, cosine) in kept.items()]
    same = [
        Copy(copy.image, kept[copy.of][0], "features", kept[copy.of][1]) if copy.of in kept else copy for copy in copies
    ]
    return [*same, *near]


def _groups(copies: Sequence[Copy], images: Images) -> list[dict[str, Any]]:
    by_kept: dict[int, list[Copy]] = {}
    for copy in sorted(copies, key=lambda copy: copy.image):
        by_kept.setdefault(copy.of, []).append(copy)
    return [
        {
            "keep": images.identifier(of),
            "leave": [{"image": images.identifier(copy.image), **_how(copy)} for copy in by_kept[of]],
        }
        for of in sorted(by_kept)
    ]


def _how(copy: Copy) -> dict[str, Any]:
    return {"by": copy.by} if copy.cosine is None else {"by": copy.by, "cosine": round(copy.cosine, 4)}


def _queue_length(run: str) -> int | None:
    """Number of keys in a run's queue; None where it has none."""
    path = Path(run) / "config.yaml"
    nodes = [read_config(path).get("method")] if path.is_file() else []
    for node in nodes:
        if isinstance(node, dict):
            if isinstance(queue := node.get("queue"), dict) and "length" in queue:
                return int(queue["length"])
            nodes += node.values()
    return None


def _text(result: dict[str, Any], folder: Path) -> str:
    """The summary that a person reads."""
    counts = Counter(each["by"] for group in result["groups"] for each in group["leave"])
    lines = [("source", f"{result['source']}: {result['num_images']:,} images"), *_broken_lines(result["broken"])]
    lines += [(f"same {by}", f"{counts[by]:,} left out") for by in ("bytes", "pixels")]
    if "threshold" in result:
        lines += [
            ("near", f"{counts['features']:,} left out, with a cosine of {result['threshold']:.3f} or more"),
            ("", result["reason"]),
            ("outliers", f"the {len(result['outliers'])} images farthest from all others, such as"),
            *(("", name) for name in result["outliers"][:_SHOWN]),
        ]
    elif "model" not in result:
        lines.append(("near", "not looked for: --model RUN compares the features of an encoder"))
    if "against" in result:
        lines.append(("against", result["against"]))
        lines += _broken_lines(result["test_broken"])
        kinds = Counter({leak["test"]: leak["by"] for leak in result["leaks"]}.values())
        by = ", ".join(f"{kinds[kind]:,} by {kind}" for kind in ("bytes", "pixels", "features") if kinds[kind])
        lines.append(
            (
                "leaks",
                f"{kinds.total():,} of {result['num_test']:,} test images are in training{f': {by}' if by else ''}",
            )
        )
    if "queue_length" in result:
        lines.append(
            (
                "queue",
                f"of {result['queue_length']:,} keys {result['false_negatives']:.3g} are of a query's duplicates and "
                f"{result['own_keys']:.3g} of its own image, on average",
            )
        )
    kept = f"{result['num_kept']:,} images"
    if "kept" in result:
        kept += f": --data.source {shlex.quote(result['kept'])}"
        if isinstance(test := result.get("kept_test"), str):
            kept += f" --data.test_source {shlex.quote(test)}"
    elif result["num_kept"]:
        kept += f", which have no files to list; {folder / 'duplicates.json'} names the others"
    lines += [("kept", kept), ("wrote", str(folder / "duplicates.json"))]
    return "\n".join(f"{name:<11} {value}" for name, value in lines)


def _broken_lines(broken: Sequence[str]) -> list[tuple[str, str]]:
    if not broken:
        return []
    more = f", and {len(broken) - _SHOWN:,} more" if len(broken) > _SHOWN else ""
    return [("broken", f"{len(broken):,}, left out{more}"), *(("", line) for line in broken[:_SHOWN])]
