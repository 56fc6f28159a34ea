"""An encoder in a file or folder of its own, for whatever else uses it: ``ssl-core export``."""

import io
import logging
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeAlias

import timm
import torch
from torch import Tensor, nn

from ssl_core.backbone import BackboneCard, save_backbone, save_card
from ssl_core.evaluate.detectron2 import write_detectron2
from ssl_core.evaluate.encoder import load_encoder
from ssl_core.evaluate.timm_folder import check_folder, check_timm, write_timm_folder
from ssl_core.files import check_file, new_folder, write_atomically

Target: TypeAlias = Literal["safetensors", "timm", "onnx", "torch", "detectron2"]

SUFFIXES = {
    "safetensors": (".safetensors",),
    "onnx": (".onnx",),
    "torch": (".pt2",),
    "detectron2": (".pth", ".pkl"),
}
TOLERANCE = 1e-4  # of the largest feature; float32 sums in another order differ by about 1e-6 of it
_ONNX_LIMIT = 2**31  # bytes of a protocol buffer
_BATCHES = (1, 3)  # numbers of images that an exported program is tried on


def export(encoder: str, out: str, *, to: Target = "safetensors") -> Path:
    """Write an encoder for use elsewhere: a backbone, a folder for timm, ONNX, a PyTorch program, or for detectron2.

    What is written for timm, ONNX and PyTorch has been loaded by these and compared with the encoder before.

    Args:
        encoder: encoder to export: a run directory, whose last checkpoint is taken, a .safetensors file with its card,
            or timm:NAME.
        out: path to write: a file that ends in .safetensors, .onnx, .pt2 or, for detectron2, .pth or .pkl, in a folder
            that exists; for timm a new folder.
        to: form of the export: safetensors, weights in timm's and torchvision's names and the card; timm, a folder
            that timm loads as local-dir:DIR and, after an upload, as hf-hub:OWNER/NAME; onnx; torch, a program of
            torch.export; detectron2, a ResNet's weights in its names, as tensors (.pth) or NumPy's arrays (.pkl), for
            the configuration that is printed. ONNX and PyTorch take any number of images.

    Returns:
        Path of the file or folder.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ImportError: if a package that ONNX needs is not installed.
        OSError: if ``out`` cannot be written, or is a folder that is not empty.
        ValueError: for another suffix, an encoder that timm or detectron2 cannot build, and an export that does not
            give the encoder's features.
    """
    path = Path(out)
    _check_target(path, to)
    if to == "timm":
        check_folder(path)
        check_timm(encoder)
    else:
        check_file(path)
    if to == "onnx":
        check_onnx()
    module, card = load_encoder(encoder)
    notes = ""
    match to:
        case "safetensors":
            save_backbone(path, module, card)
        case "timm":
            with new_folder(path) as part:
                write_timm_folder(part, module, card, name=path.resolve().name)
                loaded = timm.create_model(f"local-dir:{part}", pretrained=True).eval()
                _compare(module, card, loaded, "what timm builds", tolerance=0.0)
        case "onnx":
            _save_program(path, onnx_model(module, card), card)
        case "torch":
            _save_program(path, torch_program(module, card), card)
        case "detectron2":
            notes = "\n" + write_detectron2(path, module, card)
            save_card(path.with_suffix(".json"), card)
    size = f"{card.channels} x {card.image_size} px"
    print(f"wrote {out}: {card.architecture}, {card.num_features} features, input {size}{notes}")
    return path


def _check_target(path: Path, to: str) -> None:
    if to not in (*SUFFIXES, "timm"):
        raise ValueError(f"to {to!r} is not one of safetensors, timm, onnx, torch, detectron2")
    fitting = next((target for target, suffixes in SUFFIXES.items() if path.suffix in suffixes), "")
    if to == "timm":
        if fitting:
            raise ValueError(f"timm reads a folder, not {path}; for this file take --to {fitting}")
    elif path.suffix not in SUFFIXES[to]:
        remedy = f"; for this file take --to {fitting}" if fitting else "; --to timm writes a folder"
        raise ValueError(f"--to {to} writes a {' or '.join(SUFFIXES[to])} file, not {path}{remedy}")


def check_onnx() -> None:
    """Find the packages that make and run ONNX models before any work is done.

    Raises:
        ImportError: if one is not installed.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ImportError(f'{" and ".join(missing)} not installed: pip install "ssl-core[onnx]"')


def torch_program(encoder: nn.Module, card: BackboneCard) -> bytes:
    """An encoder as ``torch.export`` writes it, for any number of images, compared after it was read again.

    Args:
        encoder: module (n c s s) -> (n f) in eval mode, on the CPU.
        card: description of its input.

    Raises:
        ValueError: if the program does not give the encoder's features.
    """
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(encoder, _images(card), dynamic_shapes=_dynamic_batch()), buffer)
    buffer.seek(0)
    program = torch.export.load(buffer).module()
    _compare(encoder, card, program, "the exported program")
    return buffer.getvalue()


def onnx_model(encoder: nn.Module, card: BackboneCard) -> bytes:
    """An encoder in ONNX, input ``images``, output ``features``, for any number of images, compared in onnxruntime.

    Args:
        encoder: module (n c s s) -> (n f) in eval mode, on the CPU.
        card: description of its input.

    Raises:
        ValueError: if it is larger than ONNX allows, or onnxruntime does not give the encoder's features.
    """
    import onnxruntime  # type: ignore[import-untyped]  # it has none

    size = sum(tensor.nbytes for tensor in encoder.state_dict().values())
    if size >= _ONNX_LIMIT:
        raise ValueError(
            f"{card.architecture} has {size / 2**30:.1f} GiB, and one ONNX file at most 2; take --to torch"
        )
    for chatty in ("onnx_ir", "onnxscript"):  # a line for each tensor
        logging.getLogger(chatty).setLevel(logging.WARNING)
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["features"]}
    made = torch.onnx.export(encoder, _images(card), dynamic_shapes=_dynamic_batch(), verbose=False, **names)
    assert made is not None  # since no file was given
    model = made.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    _compare(
        encoder,
        card,
        lambda images: torch.from_numpy(session.run(["features"], {"images": images.numpy()})[0]),
        "onnxruntime",
    )
    return bytes(model)


def _images(card: BackboneCard, number: int = 2) -> tuple[Tensor]:
    """Noise of the distribution that an encoder is fed."""
    noise = torch.Generator().manual_seed(number)
    return (torch.randn(number, card.channels, card.image_size, card.image_size, generator=noise),)


def _dynamic_batch() -> tuple[dict[int, Any]]:
    return ({0: torch.export.Dim("n")},)


def _compare(
    encoder: nn.Module,
    card: BackboneCard,
    program: Callable[[Tensor], Tensor],
    name: str,
    *,
    tolerance: float = TOLERANCE,
) -> None:
    for number in _BATCHES:
        (images,) = _images(card, number)
        with torch.no_grad():
            expected, found = encoder(images), program(images)
        difference = float((found - expected).abs().max() / expected.abs().max())
        if not difference <= tolerance:
            raise ValueError(
                f"{name} differs from {card.architecture} by {difference:.1e} of the largest feature for {number} "
                f"images, which is more than {tolerance:g}; nothing was written"
            )


def _save_program(path: Path, program: bytes, card: BackboneCard) -> None:
    write_atomically(path, lambda file: file.write(program))
    save_card(path.with_suffix(".json"), card)
