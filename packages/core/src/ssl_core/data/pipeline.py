"""From numbers of images to views: images are packed in one place, and views rendered in the same or another.

A renderer of the CPU runs where images are decoded: in the worker processes, or in this process if there are none. With
the renderer ``device``, views are rendered on the device, one batch ahead. The images then either live there, with
nothing left for workers to do, or workers decode and pack them to be copied. See docs/design/views.md.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ssl_core.data.device import held_on, prefetched_on, to_device
from ssl_core.data.source import ImageSource, pack, packed_copy
from ssl_core.data.workers import Loader, check_shared_memory
from ssl_core.views import PackedImages, ViewSpec, choose_renderer, render_views, sample_parameters


class Request(NamedTuple):
    """The numbers of the images of a batch, and of their partners.

    Attributes:
        epoch: epoch whose views are made.
        images: n indices of images in the source.
        partners: n indices of their partners; None leaves the views of partners out.
    """

    epoch: int
    images: list[int]
    partners: list[int] | None = None


class Batch(NamedTuple):
    """The views of some images; in training one micro-batch of one rank.

    Attributes:
        views: one normalized (n c s s) tensor for each size of each view, in order; views of partners are left out
            while images have none. The tensors are on the device with the renderer ``device``, and else on the CPU.
        index: (n) indices of the images that the views were made from, on the CPU.
    """

    views: tuple[Float[Tensor, "n c _ _"], ...]
    index: Int64[Tensor, " n"]  # type: ignore[assignment]  # hides tuple.index


class Pipeline:
    """The batches of some requests, in their order; every pass reads the requests anew.

    Arguments and attributes that are not named here are those of :class:`ssl_core.data.Batches`.

    Args:
        requests: numbers of the images of each batch.
        num_batches: number of requests of a pass.
        batch_size: number of images of the largest request.
        persistent: whether the workers are kept between passes.
        hold: whether the images may live on the device, where they need no workers; too costly for a few of them.

    Raises:
        ValueError: if the renderer cannot render these views on the device, workers is negative, or the shared memory
            does not hold the views that workers make.
    """

    def __init__(
        self,
        source: ImageSource,
        specs: Sequence[ViewSpec],
        requests: Iterable[Request],
        *,
        num_batches: int,
        batch_size: int,
        seed: int,
        mean: Sequence[float],
        std: Sequence[float],
        workers: int,
        renderer: str = "auto",
        device: torch.device | str = "cpu",
        channels_last: bool = False,
        persistent: bool = False,
        hold: bool = True,
    ) -> None:
        self._device = torch.device(device)
        self.renderer = choose_renderer(renderer, self._device, specs)
        self._renders_here = self.renderer == "device"
        held = held_on(self._device, source) if self._renders_here and hold else None
        self.held_bytes = 0 if held is None else held.pixels.nbytes
        pack_some: Callable[[Sequence[int]], PackedImages]
        if held is not None:
            pack_some = partial(_held, held)
        else:
            # What leaves a worker must be the batch alone, and not the memory that it lies in.
            pack_some = partial(packed_copy if self._renders_here else pack, source)
        self._maker = _Maker(
            source,
            pack_some,
            specs,
            partial(render_views, mean=mean, std=std, renderer=self.renderer, channels_last=channels_last),
            seed=seed,
            channels=len(mean),
            device=self._device if self._renders_here else torch.device("cpu"),
        )
        if not self._renders_here:  # else workers send packed images, whose sizes nobody knows yet
            pixels = sum(size**2 for spec in specs for size in spec.sizes)
            check_shared_memory(4 * batch_size * len(mean) * pixels, num_batches, workers)
        self._loader: Loader[Request, Any] = Loader(
            self._maker.packed if self._renders_here else self._maker,
            requests,
            workers if held is None else 0,
            persistent=persistent,
            pin_memory=self._device.type == "cuda" and held is None,
        )

    def __iter__(self) -> Iterator[Batch]:
        if self._renders_here:
            return prefetched_on(self._device, map(self._maker.rendered, self._loader))
        return iter(self._loader)


class _Packed(NamedTuple):
    """A batch before it is rendered."""

    epoch: int
    index: Int64[Tensor, " n"]  # type: ignore[assignment]  # hides tuple.index
    parts: tuple[PackedImages | None, PackedImages | None]  # images and partners, where views are made of them


class _Maker:
    """Makes a batch in two steps, which may be done in two processes: images from numbers, views from images."""

    def __init__(
        self,
        source: ImageSource,
        pack_some: Callable[[Sequence[int]], PackedImages],
        specs: Sequence[ViewSpec],
        render: Callable[..., tuple[Tensor, ...]],
        *,
        seed: int,
        channels: int,
        device: torch.device,
    ) -> None:
        self._source, self._pack, self._render = source, pack_some, render
        self._specs, self._seed, self._channels, self._device = specs, seed, channels, device
        # Views of images and views of partners are rendered apart.
        self._parts = [_part(specs, partner) for partner in (False, True)]

    def __call__(self, request: Request) -> Batch:
        return self.rendered(self.packed(request))

    def packed(self, request: Request) -> _Packed:
        images, partners = (
            self._images(indices) if specs and indices is not None else None
            for (_, specs), indices in zip(self._parts, (request.images, request.partners), strict=True)
        )
        return _Packed(request.epoch, torch.tensor(request.images), (images, partners))

    def rendered(self, packed: _Packed) -> Batch:
        views: list[tuple[Tensor, ...]] = [()] * len(self._specs)
        for (places, specs), images in zip(self._parts, packed.parts, strict=True):
            if images is None:
                continue
            # Sampled here: on a GPU these hundreds of small operations take longer to launch than to compute on a CPU.
            parameters = [
                sample_parameters(
                    self._specs[place],
                    seed=self._seed,
                    epoch=packed.epoch,
                    image_index=packed.index,  # of a partner too: two images that share one see it differently
                    view_index=place,
                    image_size=images.layout[:, 1:3],
                )
                for place in places
            ]
            pixels, layout, *parameters = (
                to_device(tensor, self._device) for tensor in (images.pixels, images.layout, *parameters)
            )
            drawn = iter(self._render(PackedImages(pixels, layout, images.channels), parameters, specs))
            for place, spec in zip(places, specs, strict=True):
                views[place] = tuple(itertools.islice(drawn, len(spec.sizes)))
        return Batch(tuple(itertools.chain.from_iterable(views)), packed.index)

    def _images(self, indices: Sequence[int]) -> PackedImages:
        images = self._pack(indices)
        if images.channels != self._channels:
            raise ValueError(
                f"{self._source.identifier(indices[0])} has {images.channels} channels but the encoder takes "
                f"{self._channels}; set data.channels to {self._channels}"
            )
        return images


def _part(specs: Sequence[ViewSpec], partner: bool) -> tuple[list[int], tuple[ViewSpec, ...]]:
    """The views of images or of partners: their places among all views, and they as views of their own."""
    places = [place for place, spec in enumerate(specs) if spec.partner == partner]
    part = [
        spec if spec.derived_from is None else replace(spec, derived_from=places.index(spec.derived_from))
        for spec in (specs[place] for place in places)
    ]
    return places, tuple(part)


def _held(images: PackedImages, indices: Sequence[int]) -> PackedImages:
    return images._replace(layout=images.layout[torch.tensor(indices)])
