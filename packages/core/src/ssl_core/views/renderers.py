"""Views of a whole batch in one call, by whichever renderer fits: the same pictures, at different speed."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ssl_core.ops.backends import choose_backend
from ssl_core.ops.instructions import PackedImages, View
from ssl_core.ops.render_views import BACKENDS
from ssl_core.ops.render_views import render_views as run_programs
from ssl_core.views.images import unpack_images
from ssl_core.views.program import make_programs
from ssl_core.views.render import render_batch
from ssl_core.views.spec import ViewSpec, num_parameters

# What `data.renderer` may say, besides auto -> back-end.
RENDERERS = {"device": "triton", "cpu": "cpp", "reference": "reference"}


def choose_renderer(name: str, device: torch.device) -> str:
    """The renderer that draws the views of a method on this device.

    Args:
        name: auto, device, cpu or reference. ``auto`` renders on a GPU where the method is on one, else with the
            compiled kernels of the CPU, and with the reference where there are none.
        device: where the method is.

    Raises:
        ValueError: if it cannot run here, or there is no renderer of that name.
    """
    cpu = torch.device("cpu")
    if name == "auto":
        chosen = [choose_backend("render_views", BACKENDS, place, torch.uint8) for place in (device, cpu)]
        renderers = {backend: renderer for renderer, backend in RENDERERS.items()}
        return next((renderers[backend] for backend in chosen if backend != "reference"), "reference")
    reasons = {
        renderer: BACKENDS[backend](cpu if renderer == "cpu" else device, torch.uint8)
        for renderer, backend in RENDERERS.items()
    }
    if name not in reasons or reasons[name] is not None:
        available = ", ".join(["auto", *(renderer for renderer, reason in reasons.items() if reason is None)])
        raise ValueError(
            f"data.renderer {name}: {reasons.get(name, 'there is no renderer of that name')}; there is {available}"
        )
    return name


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
    """All views of a batch of images, normalised: (x - mean) / std of what `render` draws.

    Args:
        images: n images, on the CPU, or on a GPU for the renderer ``device``.
        parameters: (n p) of each view, a row for each image, on the device of the images. Those of a derived view
            begin with its parent's, as `sample_parameters` draws them.
        specs: the views.
        mean: of each channel, in [0, 1].
        std: of each channel.
        renderer: device, cpu or reference; see `choose_renderer`.
        dtype: of the views: float32, float16 or bfloat16.
        channels_last: whether views have their channels last in memory.

    Returns:
        One (n c s s) tensor for each size of each view, in order.

    Raises:
        TypeError: for a dtype that is none of these.
        ValueError: if the parameters are not the specs', or the renderer cannot run here.

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
