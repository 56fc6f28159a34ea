"""Some images of a run, and what pixels, the random and the trained encoder make of them."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float32, Int64
from PIL import Image
from torch import Tensor, nn

from ssl_core.data import DataConfig, Images, decoded, open_encoded, open_test
from ssl_core.data.source import readable
from ssl_core.evaluate import Features, load_subject, shared_data
from ssl_core.evaluate.encoder import run_views
from ssl_core.evaluate.online import decoded_side
from ssl_core.philox import permutation
from ssl_core.views import make_view_specs, to_picture

PIXELS, RANDOM = "raw pixels", "random encoder"
_STREAM = (0x72657074, 0)  # "rept"
_LARGEST_PIXELS = 48  # side of the images that are compared as pixels, and shown


@dataclass(frozen=True)
class Part:
    """Some images of a split.

    Attributes:
        name: name of the source.
        whole: number of images of the whole split.
        identifiers: name of each image for a person, such as its path.
        labels: (n) class of each image, -1 where unknown.
        pixels: (n c s s) images in [0, 1], as small as they are shown.
        features: (n f) features by title of the encoder.
    """

    name: str
    whole: int
    identifiers: list[str]
    labels: Int64[Tensor, " n"]
    pixels: Float32[Tensor, "n c s s"]
    features: dict[str, Float32[Tensor, "n _"]]

    def thumbnail(self, index: int, *, side: int | None = None) -> bytes:
        """An image as WebP, of that side in pixels unless None."""
        image = to_picture(self.pixels[index])
        file = io.BytesIO()
        (image if side is None else image.resize((side, side), Image.Resampling.BILINEAR)).save(
            file, format="WEBP", quality=70
        )
        return file.getvalue()


@dataclass(frozen=True)
class Look:
    """Images that runs have in common.

    Attributes:
        bank: images that neighbors and votes are taken from.
        shown: images that are shown and tested: of the test split, or the bank itself where there is none.
        classes: names of the classes; None without labels.
        runs: title of each run's encoder.
    """

    bank: Part
    shown: Part
    classes: tuple[str, ...] | None
    runs: list[str]

    @property
    def has_test(self) -> bool:
        """Whether the images shown are none of the bank."""
        return self.shown is not self.bank


def look_at_runs(
    runs: Sequence[str],
    *,
    data: DataConfig | None,
    images: int,
    device: torch.device | str,
    seed: int = 0,
    progress: bool = True,
) -> Look:
    """Take some images of each split, sampled by a seed, and their features by pixels, a random encoder and each run.

    Args:
        runs: run directories.
        data: images to take; None takes those that all runs were trained on.
        images: largest number of images of a split.
        device: device that computes the features.
        seed: seed of the choice and of the random encoder's weights.
        progress: whether bars are shown.

    Raises:
        FileNotFoundError: for a run without a checkpoint.
        ValueError: for runs of other images than the first one's.
    """
    data = data or shared_data(runs)
    titles = _titles(runs)
    encoders = [(RANDOM, "random", runs[0]), *((title, run, None) for title, run in zip(titles, runs, strict=True))]
    subjects = {
        title: load_subject(encoder, data=data, like=like, device=device, seed=seed)
        for title, encoder, like in encoders
    }
    card = subjects[RANDOM].card
    data = replace(data, channels=data.channels or card.channels)
    side = min(card.image_size, _LARGEST_PIXELS)
    flat = subjects[RANDOM]._replace(
        encoder=nn.Flatten().eval(),
        card=replace(card, image_size=side, mean=(0.0,) * card.channels, std=(1.0,) * card.channels),
    )

    # As training decoded them, so that a run's kNN is the same here.
    at_least = decoded_side([spec for run in runs for spec in make_view_specs(run_views(run))])

    def part(encoded: Images, split: str) -> Part:
        chosen = permutation(seed, _STREAM, len(encoded))[:images].sort().values
        source = decoded(encoded.subset(chosen), data, at_least=at_least)
        found: dict[str, Features] = {
            title: subject.extract(source, f"{split} images, {title}" if progress else "")
            for title, subject in {PIXELS: flat, **subjects}.items()
        }
        pixels = found[PIXELS].features.reshape(-1, card.channels, side, side)
        mean, std = (torch.tensor(values)[:, None, None] for values in (card.mean, card.std))
        return Part(
            encoded.name,
            len(encoded),
            [source.identifier(index) for index in readable(source)],
            found[PIXELS].labels,
            pixels,
            {PIXELS: ((pixels - mean) / std).flatten(1), **{t: f.features for t, f in found.items() if t != PIXELS}},
        )

    encoded = open_encoded(data, "labelled")
    bank = part(encoded, "training")
    test = open_test(data)
    return Look(bank, bank if test is None else part(test, "test"), encoded.classes, titles)


def _titles(runs: Sequence[str]) -> list[str]:
    """Shortest names that tell runs apart: of one, that it is trained."""
    if len(runs) == 1:
        return ["trained encoder"]
    names = [Path(run).resolve().name for run in runs]
    return names if len({*names}) == len(names) else [str(run) for run in runs]


def address(image: bytes, kind: str = "webp") -> str:
    """An image as the address of an ``<img>``, which then needs no file."""
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def described(look: Look, part: Part, index: int, *, query: int | None = None) -> dict[str, str]:
    """Address, description and, beside a query of a known class, kind of an image."""
    label = int(part.labels[index])
    name = look.classes[label] if look.classes is not None and label >= 0 else ""
    kind = ""
    if query is not None and query >= 0 and label >= 0:
        kind = "same" if query == label else "other"
    alt = f"{name}: {part.identifiers[index]}" if name else part.identifiers[index]
    return {"src": address(part.thumbnail(index)), "alt": alt, "kind": kind}
