"""Views of a whole batch in one call, by whichever renderer fits: the same pictures, at different speed."""

import logging
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ssl_core.ops.backends import Unsupported, choose_backend
from ssl_core.ops.instructions import Opcode, PackedImages, View, numbered
from ssl_core.ops.render_views import BACKENDS
from ssl_core.ops.render_views import render_views as run_programs
from ssl_core.views.images import unpack_images
from ssl_core.views.program import ReferenceOnlyError, make_programs
from ssl_core.views.render import render_batch
from ssl_core.views.spec import ViewSpec, num_parameters

logger = logging.getLogger(__name__)

# What `data.renderer` may say, besides auto -> back-end.
RENDERERS = {"device": "triton", "cpu": "cpp", "reference": "reference"}


def choose_renderer(name: str, device: torch.device, specs: Sequence[ViewSpec] = ()) -> str:
    """The renderer of a method's views on this device.

    Args:
        name: name of a renderer: auto, device, cpu or reference. ``auto`` renders on a GPU where the method is on one,
            and else with the compiled kernels of the CPU. Where there are none, or none for an op of the views, it
            takes the reference and logs that.
        device: device of the method.
        specs: views to render; without them, any views.

    Raises:
        ValueError: if it cannot render these views here, or there is no renderer of that name.
    """
    cpu, backends = torch.device("cpu"), _backends_for(specs)
    if name == "auto":
        able, ideal = _automatic(device, backends), _automatic(device, BACKENDS)
        if able != ideal:
            place = cpu if ideal == "cpu" else device
            reason = backends[RENDERERS[ideal]](place, torch.uint8)
            logger.info("views are rendered by %s, and not by %s: %s", able, ideal, reason)
        return able
    reasons = {
        renderer: backends[backend](cpu if renderer == "cpu" else device, torch.uint8)
        for renderer, backend in RENDERERS.items()
    }
    if name not in reasons or reasons[name] is not None:
        available = ", ".join(["auto", *(renderer for renderer, reason in reasons.items() if reason is None)])
        raise ValueError(
            f"data.renderer {name}: {reasons.get(name, 'there is no renderer of that name')}; there is {available}"
        )
    return name


def _automatic(device: torch.device, backends: Mapping[str, Unsupported]) -> str:
    """The first renderer that can run: on the device, on the CPU, or the reference."""
    chosen = [choose_backend("render_views", backends, place, torch.uint8) for place in (device, torch.device("cpu"))]
    renderers = {backend: renderer for renderer, backend in RENDERERS.items()}
    return next((renderers[backend] for backend in chosen if backend != "reference"), "reference")


def _backends_for(specs: Sequence[ViewSpec]) -> dict[str, Unsupported]:
    """`BACKENDS`, of which each says besides what it cannot render of these views."""
    opcodes: set[Opcode] = set()
    problem: str | None = None
    try:
        for program in make_programs(tuple(specs)):
            opcodes |= {numbered(Opcode, number) for number in program.instructions[:, 0].tolist()}
    except ReferenceOnlyError as error:
        problem = str(error)

    def with_views(unsupported: Unsupported) -> Unsupported:
        return lambda *where: unsupported(*where, opcodes=opcodes) or problem

    return {name: each if name == "reference" else with_views(each) for name, each in BACKENDS.items()}


def render_views(
    images: PackedImages,
    parameters: Sequence[Float64[Tensor, "n _"]],
    specs: Sequence[ViewSpec],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    renderer: str,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> tuple[Float[Tensor, "n c _ _"], ...]:
    """All views of a batch of images, normalized: (x - mean) / std of what `render` renders.

    Args:
        images: n images, on the CPU, or on a GPU for the renderer ``device``.
        parameters: (n p) of each view, a row for each image, on the device of the images. Those of a derived view
            begin with its parent's, as `sample_parameters` samples them.
        specs: views of each image.
        mean: number that is subtracted from each channel, in [0, 1].
        std: number that each channel is divided by.
        renderer: name of the renderer: device, cpu or reference; see `choose_renderer`.
        dtype: dtype of the views: float32, float16 or bfloat16.
        channels_last: whether views have their channels last in memory.

    Returns:
        One (n c s s) tensor for each size of each view, in order.

    Raises:
        TypeError: for a dtype that is none of these.
        ValueError: if the parameters are not the specs', or the renderer cannot run here or cannot render an op.

    Example:
        >>> from ssl_core.views import ViewConfig, make_view_specs, pack_images, sample_parameters
        >>> specs = make_view_specs([ViewConfig("strong", size=32)])
        >>> images = pack_images([torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8)])
        >>> index, size = torch.tensor([7]), images.layout[:, 1:3]
        >>> drawn = sample_parameters(specs[0], seed=0, epoch=0, image_index=index, view_index=0, image_size=size)
        >>> numbers = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}
        >>> [view.shape for view in render_views(images, [drawn], specs, renderer="reference", **numbers)]
        [torch.Size([1, 3, 32, 32])]
    """
    mean_c, std_c = torch.tensor(mean), torch.tensor(std)
    for spec, rows in zip(specs, parameters, strict=True):
        if rows.shape[1] != num_parameters(spec):
            raise ValueError(f"view {spec.name!r} has {num_parameters(spec)} parameters, got {rows.shape[1]}")
    if renderer != "reference":
        programs = make_programs(tuple(specs))
        views = [View(each.instructions, parameters[each.spec], each.size, each.continues) for each in programs]
        return run_programs(
            images, views, mean=mean_c, std=std_c, dtype=dtype, channels_last=channels_last, backend=RENDERERS[renderer]
        )
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    unpacked = unpack_images(images)
    pictures = [
        picture for spec, rows in zip(specs, parameters, strict=True) for picture in render_batch(unpacked, rows, spec)
    ]
    return tuple(
        picture.sub_(mean_c[:, None, None]).div_(std_c[:, None, None]).to(dtype, memory_format=memory_format)
        for picture in pictures
    )
