"""Frozen features, on which every evaluation is made.

The encoder is in eval mode, without gradient, and without autocast unless the caller asks for it; each image is
seen once, in order, in a view without randomness or, for the random-crop test, in a view whose draws a seed decides.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn

from ssl_core import distributed
from ssl_core.data import ImageSource
from ssl_core.data.pipeline import Pipeline, Request
from ssl_core.data.source import readable
from ssl_core.progress import progress_bar
from ssl_core.views import ViewSpec, eval_spec

BATCH = 256  # images in one forward


class Features(NamedTuple):
    """Features of a source's images in its order, on the CPU.

    Attributes:
        features: (n f) features, float32, as the encoder gives them.
        labels: (n) label of each image, -1 where unknown.
    """

    features: Float32[Tensor, "n f"]
    labels: Int64[Tensor, " n"]

    def to(self, device: torch.device | str) -> "Features":
        """The same features on a device; the labels stay where they are."""
        return self._replace(features=self.features.to(device))


def evaluation_view(size: int, *, resize: float = 8 / 7, interpolation: str = "bilinear") -> ViewSpec:
    """The view that features are extracted from, by the side of the encoder's input.

    From 64 pixels on, the short side is resized to 8/7 of the input before the center crop (256 for 224);
    below, to the input itself, so that a CIFAR image is seen as it is.

    Args:
        size: side of the input, pixels.
        resize: short side from 64 pixels on, as a multiple of ``size``.
        interpolation: filter of the resizing, bilinear or bicubic.

    Example:
        >>> evaluation_view(224).ops, evaluation_view(32).ops[0].short_side
        ((CenterCrop(short_side=256, interpolation='bilinear'),), 32)
    """
    return eval_spec(size, short_side=resized_side(size, resize=resize), interpolation=interpolation)


def resized_side(size: int, *, resize: float = 8 / 7) -> int:
    """The short side, in pixels, that :func:`evaluation_view` resizes an image to."""
    return size if size < 64 else round(size * resize)


def extract_features(
    encoder: nn.Module,
    source: ImageSource,
    view: ViewSpec,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
    batch_size: int = BATCH,
    workers: int = 0,
    seed: int = 0,
    progress: str = "",
    images: Sequence[int] | None = None,
) -> Features:
    """Features of all readable images of a source, in its order, or of some.

    Images that turn out broken are left out: `ssl_core.data.source.readable` gives the indices of the others.

    Changes neither the encoder, nor its mode, nor any generator, so that a training run can call it between two
    epochs.

    Args:
        encoder: module (n c s s) -> (n f), on ``device``; ``nn.Flatten()`` gives raw pixels.
        source: source of the images.
        view: view of one size.
        mean: mean of each channel, of pixels in [0, 1].
        std: standard deviation of each channel.
        device: device of the encoder.
        batch_size: number of images in one forward; changes memory and speed only.
        workers: number of processes that read images, and render them if the CPU does that; 0 does it in this one.
        seed: seed of the view's draws, if it has any.
        progress: text before a progress bar; empty shows none.
        images: numbers of the images in the source; None is all of it.

    Returns:
        Features, which take 4 n f bytes.

    Raises:
        ValueError: if an image has other channels than ``mean``, or a feature is not finite.
    """
    chosen = range(len(source)) if images is None else images
    batches = [chosen[start : start + batch_size] for start in range(0, len(chosen), batch_size)]
    found = []
    with progress_bar(len(chosen), "img", desc=progress, disable=not progress) as bar:
        for features in iterate_features(
            encoder, source, view, batches, mean=mean, std=std, device=device, workers=workers, seed=seed
        ):
            found.append(features.cpu())
            bar.update(len(features))
    whole = set(readable(source))
    kept = [place for place, index in enumerate(chosen) if index in whole]
    labels = torch.tensor([source.label(chosen[place]) for place in kept], dtype=torch.int64)
    features_nf = torch.cat(found)
    # In place of a broken image stood the next one, which has a row of its own.
    return Features(features_nf if len(kept) == len(chosen) else features_nf[kept], labels)


def own_share(length: int) -> range:
    """The numbers of the images that this process looks at; all processes together look at each once, in rank order."""
    rank, processes = distributed.rank(), distributed.world_size()
    return range(rank * length // processes, (rank + 1) * length // processes)


def own_batches(length: int) -> range:
    """The same in whole batches, so that an image is in one forward with the same others whatever the processes are.

    The last bit of a feature may depend on the number of images in a forward.
    """
    batches = own_share(-(-length // BATCH))
    return range(length)[batches.start * BATCH : batches.stop * BATCH]


def gathered(rows: Tensor, *, everywhere: bool = True) -> Tensor:
    """The rows of all processes in rank order, which need not be equally many, on the CPU.

    Args:
        rows: rows of this process.
        everywhere: whether all processes have them; otherwise the first one has, and the others their own.
    """
    return torch.cat(distributed.gather_objects(rows.cpu(), everywhere=everywhere))


def iterate_features(
    encoder: nn.Module,
    source: ImageSource,
    view: ViewSpec,
    batches: Sequence[Sequence[int]],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
    workers: int = 0,
    seed: int = 0,
) -> Iterator[Float32[Tensor, "n f"]]:
    """Features of each batch of images, for sets whose features do not fit in memory together.

    ``batches`` are numbers of images, those of each forward; other arguments and errors as :func:`extract_features`.
    Between two batches the encoder is in the mode that it was in.

    Yields:
        (n f) float32 on ``device``, for each batch.
    """
    pipeline = Pipeline(
        source,
        (view,),
        [Request(0, list(batch)) for batch in batches],
        num_batches=len(batches),
        batch_size=max(map(len, batches), default=0),
        seed=seed,
        mean=mean,
        std=std,
        workers=workers,
        device=device,
        # Twice as fast on CPUs; on other devices float32 convolutions may prefer the other layout.
        channels_last=torch.device(device).type == "cpu",
        hold=2 * sum(map(len, batches)) >= len(source),
    )
    for batch, made in zip(batches, pipeline, strict=True):
        with evaluating(encoder):
            features = encoder(made.views[0].to(device)).float()
        _check_finite(features, source, batch)
        yield features


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode without gradient; afterward each submodule is in the mode that it was in."""
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for child, training in modes:
            child.training = training


def _check_finite(features: Tensor, source: ImageSource, batch: Sequence[int]) -> None:
    bad = (~features.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"the features of {source.identifier(batch[bad[0]])} are not finite: the encoder has diverged, "
            "or mean and std are not those that it was trained with"
        )
