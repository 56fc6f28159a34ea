"""An encoder in a file of its own: ``ssl-core export``."""

from pathlib import Path

from ssl_core.backbone import save_backbone
from ssl_core.evaluate.encoder import load_encoder


def export(encoder: str, out: str) -> Path:
    """Write an encoder as ``x.safetensors`` in timm's and torchvision's names, with its card ``x.json``.

    Args:
        encoder: encoder to export: a run directory, whose last checkpoint is taken, or another encoder that
            :func:`load_encoder` takes.
        out: file that ends in ``.safetensors``, in a folder that exists.

    Returns:
        Path of the file.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for another suffix, and for weights that do not fit their card.
    """
    module, card = load_encoder(encoder)
    save_backbone(out, module, card)
    print(
        f"wrote {out}: {card.architecture}, {card.num_features} features, input {card.channels} x {card.image_size} px"
    )
    return Path(out)
