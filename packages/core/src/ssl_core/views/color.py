"""Color ops on one float image in [0, 1], for any number of channels.

With three channels every function equals torchvision's functional of the same name. Where that is undefined:

* The **gray** of an image is ITU-R 601 luma for three channels, itself for one, and the mean over channels
  for any other number, where nothing says which channel the eye would weigh more.
* **Brightness**, **contrast** and **solarizing** need no color. Contrast blends with the mean of the gray.
* **Saturation** blends with the gray, so that one channel stays as it is.
* **Hue** is a position on a color circle. One channel has no color, and two have a single color axis and
  no circle: both stay as they are. With four or more, the channels are placed evenly on a circle in their
  order and the plane of their first harmonic is rotated by the shift; it is orthogonal to the gray axis, so
  the mean over channels is kept, and with three channels a third of a turn would take red to green, as in
  HSV.
* **Autocontrast** and **equalizing** treat each channel on its own; **posterizing**, **inverting** and
  **sharpness** need no color.

Autocontrast, equalizing and posterizing are defined on 8-bit values: they round the image to 256 levels, whatever
its depth, and their results are whole levels, exactly Pillow's. Nothing else here rounds.
"""

import math

import torch
from jaxtyping import Float, Num
from torch import Tensor

# Luma as torchvision rounds it; differences of the other two channels, whose quotient by the chroma is a
# position on the color circle in sextants around red (0), green (2) or blue (4), whichever channel is the
# maximum.
_LUMA = torch.tensor([0.2989, 0.587, 0.114])
_DIFFERENCES = torch.tensor([[0.0, 1.0, -1.0], [-1.0, 0.0, 1.0], [1.0, -1.0, 0.0]])
_POSITIONS = torch.tensor([[0.0], [2.0], [4.0]])
_TINY = 1e-12  # against 0 / 0 where a pixel is gray; below any chroma of an 8- or 16-bit image


def gray(image: Float[Tensor, "c h w"]) -> Float[Tensor, "1 h w"]:
    """The gray of an image: luma for three channels, the mean over channels otherwise."""
    channels, height, width = image.shape
    if channels == 1:
        return image
    if channels == 3:
        return (_LUMA.to(image) @ image.reshape(3, -1)).view(1, height, width)
    return image.mean(dim=0, keepdim=True)


def adjust_brightness(image: Float[Tensor, "c h w"], factor: float) -> Float[Tensor, "c h w"]:
    """The image times ``factor``, clipped to [0, 1]."""
    return (image * factor).clamp_(0, 1)


def adjust_contrast(image: Float[Tensor, "c h w"], factor: float) -> Float[Tensor, "c h w"]:
    """Blend of the mean of the gray (factor 0) and the image (factor 1), clipped to [0, 1]."""
    return torch.lerp(gray(image).mean(), image, factor).clamp_(0, 1)


def adjust_saturation(image: Float[Tensor, "c h w"], factor: float) -> Float[Tensor, "c h w"]:
    """Blend of the gray (factor 0) and the image (factor 1), clipped to [0, 1]."""
    if len(image) == 1:
        return image
    return torch.lerp(gray(image), image, factor).clamp_(0, 1)


def adjust_hue(image: Float[Tensor, "c h w"], shift: float) -> Float[Tensor, "c h w"]:
    """Colors moved along the color circle by ``shift`` turns; see above for c other than 3."""
    if len(image) < 3:
        return image
    if len(image) == 3:
        return _shift_hsv(image, 6 * shift)
    return _rotate_first_harmonic(image, 2 * math.pi * shift).clamp_(0, 1)


def solarize(image: Float[Tensor, "c h w"], threshold: float) -> Float[Tensor, "c h w"]:
    """The image with values at or above ``threshold`` inverted."""
    return torch.where(image >= threshold, 1 - image, image)


def invert(image: Float[Tensor, "c h w"]) -> Float[Tensor, "c h w"]:
    """The image's negative, x -> 1 - x."""
    return 1 - image


def adjust_sharpness(image: Float[Tensor, "c h w"], factor: float) -> Float[Tensor, "c h w"]:
    """Blend of a smoothed image (factor 0) and the image (factor 1), clipped to [0, 1].

    Smoothing weights the pixel by 5 / 13 and its eight neighbors by 1 / 13; border pixels stay as they are.
    """
    if min(image.shape[1:]) < 3:
        return image
    rows = image[:, :-2] + image[:, 1:-1] + image[:, 2:]
    smooth = image.clone()
    smooth[:, 1:-1, 1:-1] = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * image[:, 1:-1, 1:-1]) / 13
    return torch.lerp(smooth, image, factor).clamp_(0, 1)


def posterize(image: Float[Tensor, "c h w"], bits: int) -> Float[Tensor, "c h w"]:
    """The highest ``bits``, 1 to 8, of each 8-bit value; the others are zero."""
    step = 1 << (8 - bits)
    return _levels(image).div_(step).floor_().mul_(step).div_(255)


def autocontrast(image: Float[Tensor, "c h w"]) -> Float[Tensor, "c h w"]:
    """Each channel stretched linearly so that its extremes become 0 and 1; a flat channel stays.

    Stretched values are cut to whole levels.
    """
    levels = _levels(image)
    low, high = levels.amin((1, 2))[:, None].double(), levels.amax((1, 2))[:, None].double()
    # Pillow's double precision and order of operations, since the cut turns a last bit into a level; torch takes
    # 255 / tensor for a product with the reciprocal.
    scale = torch.full_like(low, 255) / (high - low)
    unchanged = torch.arange(256, dtype=torch.float64, device=image.device)
    stretched = (unchanged * scale - low * scale).trunc_().clamp_(0, 255)
    return _looked_up(levels, torch.where(high > low, stretched, unchanged))


def equalize(image: Float[Tensor, "c h w"]) -> Float[Tensor, "c h w"]:
    """Each channel's values replaced by their rank, so that its histogram is as flat as a map of levels allows.

    Level i becomes floor((step // 2 + number of pixels below i) / step), at most 255, where step is a 255th of the
    number of pixels below the highest level, cut to a whole number. Where that is 0 the channel stays: a flat
    channel, or an image of at most 255 pixels.
    """
    levels = _levels(image)
    count = torch.stack([channel.bincount(minlength=256) for channel in levels.flatten(1).long()])
    below = count.cumsum(1) - count
    step = below.gather(1, levels.amax((1, 2))[:, None].long()) // 255
    unchanged = torch.arange(256, device=image.device)
    flattened = ((step // 2 + below) // step.clamp(min=1)).clamp_(max=255)
    return _looked_up(levels, torch.where(step > 0, flattened, unchanged))


def _levels(image: Float[Tensor, "c h w"]) -> Float[Tensor, "c h w"]:
    """The nearest of 256 levels, as whole numbers in [0, 255]."""
    return (image * 255).round_()


def _looked_up(levels: Float[Tensor, "c h w"], table: Num[Tensor, "c 256"]) -> Float[Tensor, "c h w"]:
    """The image in which each level is replaced by its entry in its channel's table, a level too."""
    unit = table.to(levels.dtype).div_(255)
    return unit.gather(1, levels.flatten(1).long()).view_as(levels)


def _shift_hsv(image: Float[Tensor, "3 h w"], sextants: float) -> Float[Tensor, "3 h w"]:
    """Hue shifted at constant HSV saturation and value, so that each pixel's minimum and maximum are kept.

    At a distance of d sextants from a channel's own color, 0 <= d <= 3, that channel is at the maximum below
    one sextant, at the minimum above two, and linear in between.
    """
    pixels = image.reshape(3, -1)
    highest, argmax = pixels.max(dim=0, keepdim=True)
    lowest = pixels.amin(dim=0, keepdim=True)
    chroma = highest - lowest
    quotients = (_DIFFERENCES.to(image) @ pixels).div_(chroma.clamp(min=_TINY))
    hue = quotients.add_(_POSITIONS.to(image)).gather(0, argmax)
    # In [-1, 5], as is the hue, so that |offset| <= 6 and the distance is 3 - ||offset| - 3|, around the circle.
    # The remainder of a whole image would cost as much as all the rest here.
    unshifted = image.new_tensor([[(position - sextants + 1) % 6 - 1] for position in (0, 2, 4)])
    offset = hue - unshifted
    return torch.addcmul(lowest, chroma, offset.abs_().sub_(3).abs_().sub_(1).clamp_(0, 1)).view(image.shape)


def _rotate_first_harmonic(image: Float[Tensor, "c h w"], angle: float) -> Float[Tensor, "c h w"]:
    channels = len(image)
    phase_c = torch.arange(channels, dtype=image.dtype, device=image.device) * (2 * math.pi / channels)
    cos_c, sin_c = phase_c.cos() * (2 / channels) ** 0.5, phase_c.sin() * (2 / channels) ** 0.5  # orthonormal
    plane = torch.outer(cos_c, cos_c) + torch.outer(sin_c, sin_c)
    turn = torch.outer(sin_c, cos_c) - torch.outer(cos_c, sin_c)
    rotation = plane * (math.cos(angle) - 1) + turn * math.sin(angle)
    return image + (rotation @ image.reshape(channels, -1)).view(image.shape)
