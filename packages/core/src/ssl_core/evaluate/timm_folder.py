"""An encoder in a folder that timm loads: ``config.json``, ``model.safetensors``, and a card in ``README.md``.

``timm.create_model("local-dir:DIR", pretrained=True)`` reads it, and from a model hub ``"hf-hub:OWNER/NAME"``. Written
here, since timm's own writer gives an encoder the tag, the crop and the license of the weights that timm has for its
architecture.
"""

import math
from pathlib import Path
from typing import Any, cast

from safetensors.torch import save
from torch import nn

from ssl_core.backbone import BackboneCard
from ssl_core.evaluate.encoder import find_card
from ssl_core.evaluate.features import resized_side
from ssl_core.files import check_file, write_atomically, write_json


def check_folder(path: Path) -> None:
    """Find that a folder cannot be made before any work is done.

    Raises:
        OSError: naming it, and why.
    """
    if path.is_dir():
        if any(path.iterdir()):
            raise FileExistsError(f"{path} is a folder that is not empty; give a new one")
        path = path / "config.json"
    elif path.exists():
        raise NotADirectoryError(f"{path} is a file; give a new folder")
    check_file(path)


def check_timm(encoder: str) -> None:
    """Find that timm cannot build an encoder, or has it already, before its weights are read.

    Raises:
        FileNotFoundError: if there is no such encoder.
        ValueError: naming the reason and the alternative.
    """
    if encoder.startswith("timm:"):
        raise ValueError(f"{encoder} is timm's own: timm.create_model({encoder[5:]!r}, pretrained=True)")
    card = find_card(encoder)
    if card.stem != "imagenet":
        raise ValueError(
            f"timm cannot build {encoder}: its stem {card.stem} is a 3x3 convolution of stride 1, which timm's "
            f"{card.architecture} has not; use ssl_core.load_backbone, or --to onnx or torch"
        )


def timm_config(encoder: nn.Module, card: BackboneCard) -> dict[str, Any]:
    """The content of ``config.json``, from which timm builds an encoder and its evaluation view.

    Args:
        encoder: timm module, of which timm's names for its first and last layers are taken.
        card: description of the encoder.
    """
    size = card.image_size
    model = cast(Any, encoder).pretrained_cfg
    dynamic = card.options.get("dynamic_img_size", False)
    return {
        "architecture": card.architecture,
        "num_classes": 0,
        "num_features": card.num_features,
        "model_args": card.options,
        "pretrained_cfg": {
            "input_size": [card.channels, size, size],
            "fixed_input_size": model.get("fixed_input_size", False) and not dynamic,
            "interpolation": "bilinear",
            "crop_pct": _crop_fraction(size, resized_side(size)),
            "crop_mode": "center",
            "mean": card.mean,
            "std": card.std,
            "num_classes": 0,
            # Of other weights than for 3 channels, timm before 1.0.31 replaces this layer by a random one.
            "first_conv": model.get("first_conv") if card.channels == 3 else None,
            "classifier": model.get("classifier"),
        },
    }


def _crop_fraction(size: int, short_side: int) -> float:
    """The part of an image's short side that timm crops, after it has resized that to ``floor(size / part)``."""
    part = size / short_side
    return part if math.floor(size / part) == short_side else math.nextafter(part, 0)


def timm_readme(card: BackboneCard, name: str) -> str:
    """The card that a model hub shows; it names no license, which the owner of the weights chooses.

    Args:
        card: description of the encoder.
        name: name of the encoder.
    """
    size = card.image_size
    trained = f", trained by {card.recipe}" if card.recipe else ""
    rows = {
        "architecture": f"`{card.architecture}`" + (f" with `{card.options}`" if card.options else ""),
        "features": str(card.num_features),
        "input": f"{card.channels} x {size} x {size}, (pixel - mean) / std of pixels in [0, 1]",
        "mean": ", ".join(f"{value:.4g}" for value in card.mean),
        "std": ", ".join(f"{value:.4g}" for value in card.std),
        "evaluation": f"short side resized to {resized_side(size)} px (bilinear), center crop of {size} px",
        **{key: f"{value:.4g}" for key, value in card.metrics.items()},
        "versions": ", ".join(f"{key} {value}" for key, value in card.versions.items()),
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return f"""---
library_name: timm
pipeline_tag: image-feature-extraction
tags:
- image-feature-extraction
- timm
---
# {name}

An image encoder without classifier{trained}.

| | |
|---|---|
{table}

```python
import timm

encoder = timm.create_model("local-dir:{name}", pretrained=True).eval()  # after an upload "hf-hub:OWNER/{name}"
view = timm.data.create_transform(**timm.data.resolve_model_data_config(encoder))
features = encoder(view(image)[None])
```

With `num_classes=10` it gets a new classifier of ten classes. No license is named here: the owner of the weights adds
one, as `license:` above.
"""


def write_timm_folder(folder: Path, encoder: nn.Module, card: BackboneCard, *, name: str) -> None:
    """Write the files that timm loads.

    Args:
        folder: folder that exists.
        encoder: timm module, on any device and in any memory format.
        card: description of the encoder.
        name: name of the encoder in its card.
    """
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in encoder.state_dict().items()}
    write_json(folder / "config.json", timm_config(encoder, card))
    write_atomically(folder / "model.safetensors", lambda file: file.write(save(state, metadata={"format": "pt"})))
    write_atomically(folder / "README.md", lambda file: file.write(timm_readme(card, name).encode()))
