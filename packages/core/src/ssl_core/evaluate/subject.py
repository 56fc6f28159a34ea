"""The subject of an evaluation, an encoder and its data, and their description in the result."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from ssl_core import distributed
from ssl_core.backbone import BackboneCard
from ssl_core.data import Batches, DataConfig, ImageSource, Labelled, split_remark
from ssl_core.data.source import agree_on_readable, readable
from ssl_core.evaluate.encoder import Layer, load_encoder, run_data
from ssl_core.evaluate.features import Features, evaluating, evaluation_view, extract_features, gathered, own_batches
from ssl_core.files import write_json
from ssl_core.folder import check_writable
from ssl_core.views import ViewSpec

Precision: TypeAlias = Literal["float32", "bfloat16", "tf32"]


class Subject(NamedTuple):
    """An encoder, and the data that it is evaluated on.

    Attributes:
        name: name or path of the encoder, as :func:`load_encoder` takes it.
        encoder: module (n c s s) -> (n f), on ``device``.
        card: description of the encoder and of its input.
        data: configuration of the images.
        device: device of the encoder.
        precision: number format of the encoder; ``bfloat16`` is autocast, after which features become float32.
    """

    name: str
    encoder: nn.Module
    card: BackboneCard
    data: DataConfig
    device: torch.device | str
    precision: Precision = "float32"

    def extract(
        self,
        source: ImageSource,
        progress: str = "",
        *,
        view: ViewSpec | None = None,
        seed: int = 0,
        images: Sequence[int] | None = None,
    ) -> Features:
        """Features of a source, by default in the evaluation view; see :func:`extract_features`."""
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            return extract_features(
                self.encoder,
                source,
                view or evaluation_view(self.card.image_size),
                mean=self.card.mean,
                std=self.card.std,
                device=self.device,
                workers=self.data.workers,
                seed=seed,
                progress=progress,
                images=images,
            )

    def together(
        self,
        source: ImageSource,
        progress: str = "",
        *,
        view: ViewSpec | None = None,
        seed: int = 0,
        images: Sequence[int] | None = None,
        whole: Literal["everywhere", "first", "nowhere"] = "everywhere",
    ) -> Features:
        """What :meth:`extract` gives; each process looks at its share of the images, in whole batches, and all call it.

        All processes have the ``whole``, or the first one has and the others their share, or each has its share: of
        more processes than batches some have then none, and features of shape (0). All know afterward which images any
        of them has found broken.
        """
        chosen = range(len(source)) if images is None else images
        own = [chosen[place] for place in own_batches(len(chosen))]
        found = Features(torch.empty(0), torch.empty(0, dtype=torch.int64))
        if own:
            found = self.extract(source, progress if distributed.is_main() else "", view=view, seed=seed, images=own)
        agree_on_readable(source)
        if whole == "nowhere":
            return found
        return Features(*(gathered(rows, everywhere=whole == "everywhere") for rows in found))

    def batches(
        self,
        source: ImageSource,
        view: ViewSpec,
        *,
        batch_size: int,
        seed: int,
        remainder: Literal["drop", "keep"] = "keep",
        labels: Tensor | None = None,
    ) -> Labelled:
        """Batches of a source in a view, with labels, of which each process makes its share; see :class:`Labelled`."""
        batches = Batches(
            source,
            (view,),
            batch_size=batch_size,
            seed=seed,
            mean=self.card.mean,
            std=self.card.std,
            workers=self.data.workers,
            device=self.device,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            remainder=remainder,
        )
        return Labelled(batches, source, labels)

    def digest(self) -> str:
        """Hash of the encoder's weights and of its description: what the features of given images depend on."""
        card = dataclasses.replace(self.card, init="default", metrics={}, versions={}, recipe="", method="")
        digest = hashlib.blake2b(repr(card).encode(), digest_size=16)
        for name, tensor in self.encoder.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def fitted(self, image_size: int | None) -> "Subject":
        """The same with images of as many channels as the encoder takes, and of another side in pixels, unless None.

        Raises:
            ValueError: if the encoder does not take such images.
        """
        card = dataclasses.replace(self.card, image_size=self.card.image_size if image_size is None else image_size)
        try:
            with evaluating(self.encoder):
                self.encoder(torch.zeros(1, card.channels, card.image_size, card.image_size, device=self.device))
        except Exception as error:  # anything inside any model
            raise ValueError(
                f"{self.name} does not take images of image_size {card.image_size} ({error}); "
                f"it was trained with {self.card.image_size}"
            ) from error
        data = dataclasses.replace(self.data, channels=self.data.channels or card.channels)
        return self._replace(card=card, data=data)

    def view_text(self) -> str:
        """The evaluation view in words."""
        view = evaluation_view(self.card.image_size)
        return f"{view.ops[0]}, size {view.sizes[0]}"

    def settings(self, *, is_shared: bool = False, **sources: ImageSource) -> dict[str, Any]:
        """The description of the encoder and of the images, by split, for every result, once features are extracted.

        Args:
            is_shared: whether all processes are here, each of which has read a share of the images.
            sources: images by split.
        """
        counted: dict[str, Any] = {}
        differs = []
        for split, source in sources.items():
            broken = set(range(len(source))).difference(readable(source))
            found = set[int]().union(*distributed.gather_objects(broken)) if is_shared else broken
            number = len(source) - len(found)
            counted |= {split: source.name, f"num_{split}": number}
            differs.append(split_remark(self.data, split, number))
        if any(differs):
            counted["differs"] = [each for each in differs if each]
        card = self.card
        named = {"encoder": self.name, "architecture": card.architecture, "recipe": card.recipe}
        return {**named, **counted, "holdout": self.data.holdout, "versions": card.versions}

    def folder(self, out: str | None) -> Path | None:
        """The folder of results: ``out``, or else the encoder's own; None where it has none."""
        path = Path(self.name)
        if out is None and not path.exists():
            return None
        return Path(out) if out is not None else path if path.is_dir() else path.parent

    def check_folder(self, out: str | None) -> None:
        """Find that the folder of results cannot be written before any work is done.

        Raises:
            OSError: naming it, and why.
        """
        if (folder := self.folder(out)) is not None:
            check_writable(folder)

    def save(self, result: dict[str, Any], name: str, out: str | None) -> None:
        """Write a result as JSON to a folder; None is the encoder's own, and none where it has no folder."""
        folder = self.folder(out)
        if folder is None:
            return
        write_json(folder / name, result)


def load_subject(
    encoder: str,
    *,
    data: DataConfig | None = None,
    like: str | None = None,
    features: Layer = "backbone",
    device: torch.device | str = "cpu",
    seed: int = 0,
    out: str | None = None,
) -> Subject:
    """The subject of a command, from the arguments that all commands have in common.

    Args:
        encoder: run directory, ``.safetensors`` file, ``timm:NAME``, ``random`` or ``pixels``.
        data: images to take; None takes those of the run that ``encoder``, or else ``like``, names.
        like: run directory or exported backbone whose architecture and input ``random`` and ``pixels`` take.
        features: layer to evaluate: ``backbone``, or ``projection``, the projector after it.
        device: device that computes the features.
        seed: seed of the weights of ``random``.
        out: folder that the result will be written to, if given; checked before any work.

    Raises:
        FileNotFoundError: for a path that does not exist, the folder ``out`` among them.
        ValueError: for what does not fit together.
    """
    check_out(out)
    module, card = load_encoder(encoder, like=like, features=features, seed=seed)
    return Subject(encoder, module.to(device), card, data or run_data(like or encoder), device)


def check_out(out: str | None) -> None:
    """Find, before any work, that the folder that a result is to be written to is not there.

    Raises:
        FileNotFoundError: naming it.
    """
    if out is not None and not Path(out).is_dir():
        raise FileNotFoundError(f"there is no folder {out} to write the result to")
