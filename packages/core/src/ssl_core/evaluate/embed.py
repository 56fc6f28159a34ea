"""Features of a source in a file, for whatever else reads them: ``ssl-core embed``."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from pyarrow.lib import FixedSizeListArray, array, table
from pyarrow.parquet import write_table

from ssl_core.data import DataConfig, open_source
from ssl_core.data.source import readable
from ssl_core.evaluate.encoder import Layer
from ssl_core.evaluate.features import Features
from ssl_core.evaluate.subject import load_subject
from ssl_core.files import check_file, write_atomically


def embed(
    encoder: str,
    out: str,
    *,
    data: DataConfig | None = None,
    split: str = "train",
    like: str | None = None,
    features: Layer = "backbone",
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Write the features of a source's readable images, with identifiers and labels (-1 where unknown), in its order.

    Args:
        encoder: run directory, ``.safetensors`` file, ``timm:NAME``, ``random`` or ``pixels``.
        out: file that ends in ``.npz`` (arrays ``features``, ``labels``, ``identifiers``) or ``.parquet`` (columns
            ``identifier``, ``label``, ``features``).
        data: images to take; None takes those of the run that ``encoder``, or else ``like``, names.
        split: part of the data: ``train``, ``test`` or ``labelled``.
        like: run directory or exported backbone whose input ``random`` and ``pixels`` take.
        features: layer to evaluate: ``backbone``, or ``projection``, the projector after it.
        device: device that computes the features.
        seed: seed of the weights of ``random``.
        progress: whether a bar is shown.

    Returns:
        Path of the file.

    Raises:
        FileNotFoundError: for a path that does not exist, the folder of ``out`` among them.
        OSError: if ``out`` cannot be written.
        ValueError: for another suffix, and for what does not fit together.
    """
    path = Path(out)
    # Before the work, which may take hours.
    if path.suffix not in (".npz", ".parquet"):
        raise ValueError(f"features are written as .npz or .parquet, not {out!r}")
    check_file(path)
    subject = load_subject(encoder, data=data, like=like, features=features, device=device, seed=seed)
    source = open_source(subject.data, split=split)
    found = subject.extract(source, "features" if progress else "")
    identifiers = [source.identifier(index) for index in readable(source)]
    write_atomically(path, lambda file: _write_features(file, path.suffix, found, identifiers))
    print(f"wrote {len(identifiers)} features of length {found.features.shape[1]} to {path}")
    return path


def _write_features(file: BinaryIO, suffix: str, found: Features, identifiers: list[str]) -> None:
    features, labels = found.features.numpy(), found.labels.numpy()
    if suffix == ".npz":
        np.savez(file, features=features, labels=labels, identifiers=np.array(identifiers))
    else:
        rows = FixedSizeListArray.from_arrays(array(features.ravel()), features.shape[1])
        rows_table = table({"identifier": identifiers, "label": labels, "features": rows})
        write_table(rows_table, file)  # type: ignore[no-untyped-call]  # pyarrow's is untyped
