"""What an evaluation looks at, and what it says of it in its result."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ssl_core.backbone import BackboneCard
from ssl_core.data import DataConfig, ImageSource
from ssl_core.evaluate.encoder import Layer, load_encoder, run_data
from ssl_core.evaluate.features import Features, evaluation_view, extract_features
from ssl_core.files import write_atomically


class Subject(NamedTuple):
    """An encoder, and the data that it is evaluated on."""

    encoder: nn.Module
    card: BackboneCard
    data: DataConfig
    device: torch.device | str

    def extract(self, source: ImageSource, progress: str) -> Features:
        """Features of a source in the evaluation view."""
        return extract_features(
            self.encoder,
            source,
            evaluation_view(self.card.image_size),
            mean=self.card.mean,
            std=self.card.std,
            device=self.device,
            workers=self.data.workers,
            progress=progress,
        )

    def view_text(self) -> str:
        """The evaluation view in words."""
        view = evaluation_view(self.card.image_size)
        return f"{view.ops[0]}, size {view.sizes[0]}"


def load_subject(
    encoder: str, data: DataConfig | None, like: str | None, features: Layer, device: torch.device | str, seed: int
) -> Subject:
    """The encoder, and the data of the run that it or ``like`` names where none is given."""
    module, card = load_encoder(encoder, like=like, features=features, seed=seed)
    return Subject(module.to(device), card, data or run_data(like or encoder), device)


def settings(encoder: str, subject: Subject, **sources: ImageSource) -> dict[str, Any]:
    """What every result says of the encoder and of the images, by split."""
    counted: dict[str, Any] = {}
    for split, source in sources.items():
        counted |= {split: source.name, f"num_{split}": len(source)}
    return {
        "encoder": encoder,
        "architecture": subject.card.architecture,
        "recipe": subject.card.recipe,
        **counted,
        "holdout": subject.data.holdout,
        "versions": subject.card.versions,
    }


def save_result(result: dict[str, Any], name: str, out: str | None, encoder: str) -> None:
    """Write a result to the folder ``out``, or else to the encoder's, if it has one."""
    folder = _folder(encoder) if out is None else Path(out)
    if folder is not None:
        write_atomically(folder / name, lambda part: part.write_text(json.dumps(result, indent=2) + "\n"))


def _folder(encoder: str) -> Path | None:
    """The run directory, or the folder of an exported backbone; None for other encoders."""
    path = Path(encoder)
    if not path.exists():
        return None
    return path if path.is_dir() else path.parent
