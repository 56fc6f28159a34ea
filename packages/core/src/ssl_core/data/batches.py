"""Batches of views: which images make a batch is a function of (seed, epoch), whoever makes it.

An epoch is a permutation of the images cut into global batches, the remainder dropped or kept as a smaller one. A
global batch is cut into ``accumulate`` micro-batches of consecutive images, and each of these into one run of
consecutive rows for each rank: the ranks' rows in rank order are the micro-batch. Where images have partners, each
image of an epoch is paired with one of its own. Neither the number of workers nor where an epoch is entered changes an
image's views or its partner.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Int32, Int64, Shaped
from torch import Tensor

from ssl_core.data.order import Order
from ssl_core.data.pipeline import Batch, Pipeline, Request
from ssl_core.data.source import ImageSource
from ssl_core.data.workers import Requests
from ssl_core.distributed import equal_share
from ssl_core.philox import uniform
from ssl_core.views import ViewSpec

logger = logging.getLogger(__name__)

_PARTNER_STREAM = 0x70617274  # "part"; stands where a view's index stands, which is never as large


class Batches:
    """The batches of a source, epoch by epoch; one epoch is read at a time.

    Args:
        source: images.
        specs: views of each image.
        batch_size: number of images of an optimizer step over all ranks and micro-batches.
        seed: seed of the order of the images, their partners and their views.
        mean: mean of each channel, subtracted from views in [0, 1].
        std: standard deviation of each channel, by which views are divided.
        workers: number of processes that decode images and make views, kept from one epoch to the next; 0 does both
            in this one.
        renderer: name of the renderer: auto, device, cpu or reference, see `ssl_core.views.choose_renderer`.
        device: device that uses the views, and renders them with the renderer ``device``; batches for a GPU that come
            from workers are in page-locked memory.
        channels_last: whether views have their channels last in memory.
        accumulate: number of micro-batches of an optimizer step.
        rank: index of this process.
        world_size: number of processes.
        remainder: fate of the images that do not fill the last batch of an epoch: ``drop`` leaves them out; ``keep``
            makes a smaller batch of them, filled up for equal shares by the first images of the epoch. A single image
            for each process, of which BatchNorm has no statistics, is left out, and the log says so.
        order: order of the images; None is at random.

    Attributes:
        batches_per_epoch: number of optimizer steps of an epoch.
        renderer: renderer that was chosen.
        held_bytes: size of the images that live on the device, which need no workers; 0 if they do not.

    Raises:
        ValueError: if there are fewer images than a batch has, the batch cannot be divided, a remainder is to be kept
            with micro-batches, mean and std are not one number for each channel, the renderer cannot run on the device,
            or the shared memory does not hold the batches of the workers.

    Example:
        >>> from ssl_core.data import DataConfig, open_source
        >>> from ssl_core.views import ViewConfig, make_view_specs
        >>> source = open_source(DataConfig(source="digits"))
        >>> specs = make_view_specs([ViewConfig("weak", size=32, count=2)])
        >>> batches = Batches(source, specs, batch_size=64, seed=0, mean=(0.1,), std=(0.2,), workers=0)
        >>> batch = next(batches.epoch(0))
        >>> [view.shape for view in batch.views]
        [torch.Size([64, 1, 32, 32]), torch.Size([64, 1, 32, 32])]
    """

    def __init__(
        self,
        source: ImageSource,
        specs: Sequence[ViewSpec],
        *,
        batch_size: int,
        seed: int,
        mean: Sequence[float],
        std: Sequence[float],
        workers: int,
        renderer: str = "auto",
        device: torch.device | str = "cpu",
        channels_last: bool = False,
        accumulate: int = 1,
        rank: int = 0,
        world_size: int = 1,
        remainder: Literal["drop", "keep"] = "drop",
        order: Order | None = None,
    ) -> None:
        if len(source) < batch_size:
            raise ValueError(
                f"{source.name} has {len(source)} images, fewer than one batch of {batch_size}; "
                "lower train.batch_size or add images"
            )
        rows = rows_at_once(batch_size, accumulate, world_size)
        num_channels = source.image(0).shape[0]
        if not len(mean) == len(std) == num_channels:
            raise ValueError(f"mean {mean} and std {std} need one number for each of {num_channels} channels")
        if remainder == "keep" and accumulate > 1:
            raise ValueError(f"a remainder cannot be kept with {accumulate} micro-batches; drop it, or take one")
        num_full, num_left = divmod(len(source), batch_size)
        last_rows = math.ceil(num_left / world_size) if remainder == "keep" else 0
        if last_rows == 1:
            if rank == 0:
                logger.info("%s: the last %d of an epoch's images are left out, one a process", source.name, num_left)
            last_rows = 0
        self.batches_per_epoch = num_full + bool(last_rows)
        self._source = source
        self._seed = seed
        self._order = order or Order(torch.tensor([len(source)]))
        self._num_full, self._layout, self._last_rows = num_full, (accumulate, world_size, rows), last_rows
        self._rank = rank
        self._partners: Int32[Tensor, "n p"] | None = None
        self._requests: Requests[Request] = Requests()
        self._pipeline = Pipeline(
            source,
            specs,
            self._requests,
            num_batches=self.batches_per_epoch * accumulate,
            batch_size=rows,
            seed=seed,
            mean=mean,
            std=std,
            workers=workers,
            renderer=renderer,
            device=device,
            channels_last=channels_last,
            persistent=True,
        )
        self.renderer, self.held_bytes = self._pipeline.renderer, self._pipeline.held_bytes

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This rank's micro-batches of an epoch, ``accumulate`` for each optimizer step.

        Args:
            epoch: number of the epoch; any may follow any.
            start: number of optimizer steps to leave out at its beginning.

        Raises:
            RuntimeError: if this epoch is continued after another was started.
        """
        requests = (
            Request(epoch, index.tolist(), None if self._partners is None else self._drawn(index, epoch).tolist())
            for index in self._own(epoch, start)
        )
        yield from self._requests.results(self._pipeline, requests, epoch)

    def _own(self, epoch: int, start: int) -> Iterator[Int64[Tensor, " n"]]:
        """This rank's micro-batches as numbers of images."""
        size = math.prod(self._layout)
        waiting = torch.empty(0, dtype=torch.int64)
        for part in self._order.parts(self._seed, epoch, start * size):
            waiting = torch.cat([waiting, part]) if len(waiting) else part
            num_batches = len(waiting) // size
            full = waiting[: num_batches * size].reshape(num_batches, *self._layout)
            waiting = waiting[num_batches * size :]
            yield from full[:, :, self._rank].flatten(0, 1)
        if self._last_rows:
            filled = torch.cat([waiting, *self._order.parts(self._seed, epoch)])
            yield filled[self._rank * self._last_rows :][: self._last_rows]

    def set_partners(self, partners: Int32[Tensor, "n p"] | None) -> None:
        """Set the images that each image may be paired with, from the next epoch on.

        In every epoch an image's partner is sampled anew from its row. The views of a batch that ask for a partner are
        made from it, each with draws of its own.

        Args:
            partners: (n p) indices of images, a row for each image; None leaves images alone.

        Raises:
            ValueError: if there is not one row for each image, or an index is none of an image.
        """
        num_images = len(self._source)
        if partners is not None:
            if len(partners) != num_images or not partners.shape[1]:
                raise ValueError(f"partners of shape {tuple(partners.shape)} do not fit {num_images} images")
            low, high = (int(bound) for bound in partners.aminmax())
            if low < 0 or high >= num_images:
                raise ValueError(f"partners must be in [0, {num_images}), got {low} to {high}")
        self._partners = partners

    def state_dict(self) -> dict[str, Tensor | None]:
        """The state that the batches of the next epochs depend on, beside this object's arguments."""
        return {"partners": self._partners}

    def load_state_dict(self, state: dict[str, Tensor | None]) -> None:
        """Take up the state of another."""
        self.set_partners(state["partners"])

    def identifier(self, index: int) -> str:
        """Name of an image for a person, such as its path."""
        return self._source.identifier(index)

    def _drawn(self, index: Int64[Tensor, " n"], epoch: int) -> Int32[Tensor, " n"]:
        """One partner for each image."""
        assert self._partners is not None
        streams = torch.stack([index, torch.full_like(index, epoch), torch.full_like(index, _PARTNER_STREAM)], dim=1)
        column = (uniform(self._seed, streams, 1) * self._partners.shape[1]).long()
        return self._partners[index].gather(1, column).squeeze(1)


class Labelled:
    """Batches with the label of each image behind its views, for a method that learns from labels.

    Args:
        batches: batches of the source.
        source: images with their labels.
        labels: (n ...) row of labels for each image, in place of its one label, in the order of the source before any
            image has turned out broken.
    """

    def __init__(self, batches: Batches, source: ImageSource, labels: Shaped[Tensor, "n *c"] | None = None) -> None:
        self._batches, self._source = batches, source
        self.batches_per_epoch = batches.batches_per_epoch
        self._of_image: Callable[[int], Tensor] = lambda index: torch.tensor(source.label(index))
        if labels is not None:
            rows = {source.identifier(index): row for index, row in enumerate(labels)}
            self._of_image = lambda index: rows[source.identifier(index)]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """As :meth:`Batches.epoch`, with a tensor of labels (n), or of their rows, as the last of the views."""
        for batch in self._batches.epoch(epoch, start):
            # Asked for after the image: one that replaces a broken image brings its own label.
            labels = torch.stack([self._of_image(index) for index in batch.index.tolist()])
            yield batch._replace(views=(*batch.views, labels))

    def identifier(self, index: int) -> str:
        """Name of an image for a person, such as its path."""
        return self._source.identifier(index)

    def state_dict(self) -> dict[str, Any]:
        """The state of the batches."""
        return self._batches.state_dict()


def rows_at_once(batch_size: int, accumulate: int, world_size: int) -> int:
    """Number of images that a process forwards at once.

    Raises:
        ValueError: if the batch cannot be divided so, with the nearest that can.
    """
    return equal_share("train.batch_size", batch_size, micro_batches=accumulate, processes=world_size)
