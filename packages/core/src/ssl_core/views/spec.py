"""What a view is before any number is drawn: an ordered tuple of ops with the paper's numbers, and sizes.

An op here is numbers and names only. `sampling.py` turns uniform draws into the parameters named in
``parameters``; `render.py` turns parameters and an image into pixels. A new op is a dataclass in this file, a
member of `ViewOp` and one case in each of those two; the type checker names a case that is missing.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, get_args

from ssl_core.views.pools import POOLS

# What a colour jitter's order is an index into: 0 is brightness, 1 contrast, 2 saturation, 3 hue.
JITTER_ORDERS = tuple(itertools.permutations(range(4)))

INTERPOLATIONS = ("bilinear", "bicubic")


def _check_prob(op: str, prob: float) -> None:
    if not 0 <= prob <= 1:
        raise ValueError(f"{op}: prob must be in [0, 1], got {prob}")


def _check_range(op: str, name: str, bounds: tuple[float, float], *, upto: float) -> None:
    if not 0 < bounds[0] <= bounds[1] <= upto:
        raise ValueError(f"{op}: {name} must be two rising numbers in (0, {upto:g}], got {bounds}")


def _check_interpolation(op: str, interpolation: str) -> None:
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"{op}: interpolation must be one of {', '.join(INTERPOLATIONS)}, got {interpolation!r}")


@dataclass(frozen=True)
class RandomResizedCrop:
    """A box of random area and aspect ratio, resized to the view's size with antialias.

    Ten boxes are drawn and the first that lies inside the image is taken; if none does, the largest central
    box whose ratio is allowed. Same distribution as torchvision's transform of this name.

    Args:
        scale: area of the box as a fraction of the image's area, uniform.
        ratio: width / height of the box, log-uniform.
        interpolation: bilinear or bicubic.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bilinear"

    name: ClassVar[str] = "random_resized_crop"
    # The box in pixels of the image that the op receives; whole numbers.
    parameters: ClassVar[tuple[str, ...]] = ("top", "left", "height", "width")
    # (area, ratio) of ten candidates, then the position of the one taken.
    num_draws: ClassVar[int] = 22

    def __post_init__(self) -> None:
        _check_range(self.name, "scale", self.scale, upto=1.0)
        _check_range(self.name, "ratio", self.ratio, upto=20.0)
        _check_interpolation(self.name, self.interpolation)


@dataclass(frozen=True)
class RandomCrop:
    """A window of the view's size at a random place of the zero-padded image, without resizing.

    An image that is smaller than the window even with its padding is centred in it, zeros around.

    Args:
        padding: zeros on each side, in pixels.
    """

    padding: int = 0

    name: ClassVar[str] = "random_crop"
    # Corner of the window in pixels of the unpadded image; negative in the padding.
    parameters: ClassVar[tuple[str, ...]] = ("top", "left")
    num_draws: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise ValueError(f"{self.name}: padding must be >= 0 pixels, got {self.padding}")


@dataclass(frozen=True)
class CenterCrop:
    """The image resized so that its short side is ``short_side``, and the central square of the view's size.

    Nothing is random. "Resize 256, centre crop 224" is ``CenterCrop(short_side=256)`` in a view of size 224.

    Args:
        short_side: pixels, at least the view's size; None is the view's size: the largest central square.
        interpolation: bilinear or bicubic.
    """

    short_side: int | None = None
    interpolation: str = "bilinear"

    name: ClassVar[str] = "center_crop"
    parameters: ClassVar[tuple[str, ...]] = ()
    num_draws: ClassVar[int] = 0

    def __post_init__(self) -> None:
        _check_interpolation(self.name, self.interpolation)


@dataclass(frozen=True)
class Resize:
    """The whole image made square, whatever its aspect ratio. Nothing is random.

    `CenterCrop` is the third way to a square: it keeps the aspect ratio and loses the ends of the long side.

    Args:
        side: pixels; None is the view's size.
        interpolation: bilinear or bicubic.
        mode: squash changes the aspect ratio; pad keeps it: the long side becomes ``side``, and the image is
            centred between black (zeros).
    """

    side: int | None = None
    interpolation: str = "bilinear"
    mode: str = "squash"

    name: ClassVar[str] = "resize"
    parameters: ClassVar[tuple[str, ...]] = ()
    num_draws: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if self.side is not None and self.side < 1:
            raise ValueError(f"{self.name}: side must be >= 1 pixel, got {self.side}")
        _check_interpolation(self.name, self.interpolation)
        if self.mode not in ("squash", "pad"):
            raise ValueError(f"{self.name}: mode must be squash or pad, got {self.mode!r}")


@dataclass(frozen=True)
class HorizontalFlip:
    """Left and right exchanged with probability ``prob``."""

    prob: float = 0.5

    name: ClassVar[str] = "horizontal_flip"
    parameters: ClassVar[tuple[str, ...]] = ("flip",)  # 0 or 1
    num_draws: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check_prob(self.name, self.prob)


@dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast, saturation and hue changed by random amounts in a random order.

    A strength b draws a factor from U(max(0, 1 - b), 1 + b); hue h draws a shift from U(-h, h), in turns of
    the colour circle. What the four do for images of other than three channels is in `ssl_core.views.color`.

    Args:
        prob: probability that the image is changed at all.
        brightness: strength, >= 0.
        contrast: strength, >= 0.
        saturation: strength, >= 0.
        hue: largest shift, in [0, 0.5].
    """

    prob: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1

    name: ClassVar[str] = "color_jitter"
    # Factors of 1 and a hue of 0 leave the image as it is; order is an index into JITTER_ORDERS.
    parameters: ClassVar[tuple[str, ...]] = ("brightness", "contrast", "saturation", "hue", "order")
    # Whether to change the image, then one for each parameter.
    num_draws: ClassVar[int] = 6

    def __post_init__(self) -> None:
        _check_prob(self.name, self.prob)
        for strength in ("brightness", "contrast", "saturation"):
            if not getattr(self, strength) >= 0:
                raise ValueError(f"{self.name}: {strength} must be >= 0, got {getattr(self, strength)}")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"{self.name}: hue must be in [0, 0.5] turns, got {self.hue}")


@dataclass(frozen=True)
class Grayscale:
    """Every channel replaced by the image's gray with probability ``prob``."""

    prob: float = 0.2

    name: ClassVar[str] = "grayscale"
    parameters: ClassVar[tuple[str, ...]] = ("gray",)  # 0 or 1
    num_draws: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check_prob(self.name, self.prob)


@dataclass(frozen=True)
class GaussianBlur:
    """Convolution with a Gaussian of random standard deviation, with probability ``prob``.

    The kernel has 2 ceil(3 sigma) + 1 taps: beyond three standard deviations 0.3 % of the mass is left, and a
    kernel as wide as its sigma needs costs little for small sigmas. The image continues by reflection.

    Args:
        prob: probability of blurring.
        sigma: range of the standard deviation, uniform, in pixels of the view.
    """

    prob: float = 0.5
    sigma: tuple[float, float] = (0.1, 2.0)

    name: ClassVar[str] = "gaussian_blur"
    parameters: ClassVar[tuple[str, ...]] = ("sigma",)  # 0 when not blurred
    num_draws: ClassVar[int] = 2

    def __post_init__(self) -> None:
        _check_prob(self.name, self.prob)
        _check_range(self.name, "sigma", self.sigma, upto=float("inf"))


@dataclass(frozen=True)
class Solarize:
    """Values at or above ``threshold`` inverted, x -> 1 - x, with probability ``prob``."""

    prob: float = 0.2
    threshold: float = 0.5

    name: ClassVar[str] = "solarize"
    parameters: ClassVar[tuple[str, ...]] = ("solarize",)  # 0 or 1
    num_draws: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check_prob(self.name, self.prob)
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"{self.name}: threshold must be in [0, 1], got {self.threshold}")


@dataclass(frozen=True)
class RandAugment:
    """Distortions drawn from a pool with replacement, each applied with probability ``prob``, in turn.

    A magnitude is the pool's at a level that is drawn for each distortion. Defaults are CLSA's released code.
    Paper: Wang and Qi, 2020 (CLSA), section 3.3 and table 1, after Cubuk et al., 2020 (RandAugment).

    Args:
        pool: name of the distortions and their magnitudes; see `ssl_core.views.POOLS`.
        num_ops: how many are drawn, >= 1.
        prob: probability that a drawn distortion is applied.
        level_range: lowest and highest level, each whole level in between as likely; equal for a fixed level.
            "continuous" draws any number from 0 to the pool's top level: the whole of each range.
    """

    pool: str = "clsa_code14"
    num_ops: int = 5
    prob: float = 0.5
    level_range: tuple[int, int] | str = (1, 9)

    name: ClassVar[str] = "rand_augment"

    @property
    def parameters(self) -> tuple[str, ...]:
        """Index into `DISTORTIONS`, 0 where none is applied, and magnitude of each draw, sign included.

        Where the pool has cutout, its centre too, as fractions of width and height; 0 for what has no place.
        """
        place = ("x", "y") if POOLS[self.pool].has_cutout else ()
        parts = ("distortion", "magnitude", *place)
        return tuple(f"{part}_{draw}" for draw in range(1, self.num_ops + 1) for part in parts)

    @property
    def num_draws(self) -> int:
        """For each distortion: which, level, whether to apply it, sign; where the pool has cutout, x and y."""
        return (6 if POOLS[self.pool].has_cutout else 4) * self.num_ops

    def __post_init__(self) -> None:
        if self.pool not in POOLS:
            raise ValueError(f"{self.name}: no pool is called {self.pool!r}; there are {', '.join(POOLS)}")
        if self.num_ops < 1:
            raise ValueError(f"{self.name}: num_ops must be >= 1, got {self.num_ops}")
        _check_prob(self.name, self.prob)
        top = POOLS[self.pool].top_level
        if isinstance(self.level_range, str):
            is_range = self.level_range == "continuous"
        else:
            is_range = 0 <= self.level_range[0] <= self.level_range[1] <= top
        if not is_range:
            raise ValueError(
                f"{self.name}: level_range must be two rising levels in [0, {top}] or 'continuous', "
                f"got {self.level_range!r}"
            )


@dataclass(frozen=True)
class Jigsaw:
    """The image's grid x grid cells in a random order, with probability ``prob``; every order is as likely.

    Paper: Bai et al., 2022 (DSSL), section 4.1, where the cells stay one image.

    Args:
        grid: cells along each side, >= 2; divides the side of the image in pixels.
        prob: probability that the cells are shuffled.
    """

    grid: int = 4
    prob: float = 1.0

    name: ClassVar[str] = "jigsaw"

    @property
    def parameters(self) -> tuple[str, ...]:
        """For each place, row by row, the cell that it shows; its own where nothing is shuffled."""
        return tuple(f"cell_{place}" for place in range(self.grid**2))

    @property
    def num_draws(self) -> int:
        """Whether to shuffle, and one for each cell, whose ranks are the order."""
        return 1 + self.grid**2

    def __post_init__(self) -> None:
        if self.grid < 2:
            raise ValueError(f"{self.name}: grid must be >= 2 cells along a side, got {self.grid}")
        _check_prob(self.name, self.prob)


@dataclass(frozen=True)
class Choice:
    """Either the ops ``first``, with probability ``prob``, or the ops ``second``. No ops leave the image as it is.

    In a config: ``{choice: {prob: 0.9, first: [{grayscale: {prob: 1}}], second: [jigsaw_4]}}``.

    Args:
        prob: probability of ``first``.
        first: ops in order, none of which changes the image's size or is a choice itself.
        second: likewise.
    """

    prob: float
    first: "tuple[ViewOp, ...]"
    second: "tuple[ViewOp, ...]"

    name: ClassVar[str] = "choice"

    @property
    def parameters(self) -> tuple[str, ...]:
        """1 for ``first`` and 0 for ``second``, then the parameters of both; those of the other one do nothing."""
        first, second = _named_parameters(self.first), _named_parameters(self.second)
        return ("takes_first", *(f"first.{name}" for name in first), *(f"second.{name}" for name in second))

    @property
    def num_draws(self) -> int:
        """Which of the two, then the draws of both."""
        return 1 + sum(op.num_draws for op in (*self.first, *self.second))

    def __post_init__(self) -> None:
        _check_prob(self.name, self.prob)
        for op in (*self.first, *self.second):
            if isinstance(op, (*_GEOMETRY, Choice)):
                raise ValueError(
                    f"{self.name}: {op.name} cannot be one of its ops: they must keep the image's size and not choose "
                    "themselves; put it before or after"
                )


ViewOp = (
    RandomResizedCrop
    | RandomCrop
    | CenterCrop
    | Resize
    | HorizontalFlip
    | ColorJitter
    | Grayscale
    | GaussianBlur
    | Solarize
    | RandAugment
    | Jigsaw
    | Choice
)

# Name in a config file -> op.
VIEW_OPS: dict[str, type[ViewOp]] = {op.name: op for op in get_args(ViewOp)}

# Ops after which the image has the view's size (Resize only where it names no side of its own).
_GEOMETRY = (RandomResizedCrop, RandomCrop, CenterCrop, Resize)


@dataclass(frozen=True)
class ViewSpec:
    """One view: its ops in order, and the size or sizes that it is rendered at.

    Several sizes show the same draws at several resolutions: the same box, colours and blur sigma (in pixels
    of each view). A derived view begins with the first ops of an earlier view *and with their draws*; the
    rest it draws on its own. ``ops`` is always the complete tuple; `derive` builds such a view.

    Args:
        ops: what is done to the image, in order; one of them at least brings it to the view's size.
        sizes: sides of the square views, in pixels.
        name: what the view is called in a gallery or a log.
        derived_from: index of the view whose draws the first ``shared_ops`` ops take.
        shared_ops: how many of ``ops`` take their draws from there.
        partner: whether it is a view of the image's partner (`ssl_core.data.Batches`) and not of the image itself.

    Raises:
        ValueError: for ops that do not fit together or do not fit the sizes.

    Example:
        >>> view = ViewSpec((RandomResizedCrop(scale=(0.2, 1.0)), HorizontalFlip()), (32,), name="weak")
        >>> parameter_names(view)[-2:]
        ('random_resized_crop.width', 'horizontal_flip.flip')
    """

    ops: tuple[ViewOp, ...]
    sizes: tuple[int, ...]
    name: str = ""
    derived_from: int | None = None
    shared_ops: int = 0
    partner: bool = False

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1 or len(set(self.sizes)) < len(self.sizes):
            raise ValueError(f"view {self.name!r}: sizes must be different pixel counts >= 1, got {self.sizes}")
        geometry = [op for op in self.ops if isinstance(op, _GEOMETRY)]
        if not any(not isinstance(op, Resize) or op.side is None or (op.side,) == self.sizes for op in geometry[-1:]):
            raise ValueError(
                f"view {self.name!r}: its ops do not end at the view's size {self.sizes}: "
                "add random_resized_crop, random_crop, center_crop or resize"
            )
        if len(self.sizes) > 1 and (len(geometry) > 1 or isinstance(geometry[0], RandomCrop)):
            raise ValueError(
                f"view {self.name!r}: several sizes {self.sizes} need one geometric op that resizes, got "
                f"{[op.name for op in geometry]}: make one view for each size"
            )
        for op in geometry:
            short_side = op.short_side if isinstance(op, CenterCrop) else None
            if short_side is not None and short_side < max(self.sizes):
                raise ValueError(
                    f"view {self.name!r}: center_crop's short_side {short_side} is smaller than "
                    f"the view's size {max(self.sizes)}"
                )
        self._check_jigsaws()
        if (self.derived_from is None) != (self.shared_ops == 0) or self.shared_ops > len(self.ops):
            raise ValueError(
                f"view {self.name!r}: derived_from {self.derived_from} with shared_ops {self.shared_ops} of "
                f"{len(self.ops)} ops: build derived views with ssl_core.views.derive"
            )

    def _check_jigsaws(self) -> None:
        sides: tuple[int, ...] = ()
        for op in self.ops:
            if isinstance(op, _GEOMETRY):
                sides = (op.side,) if isinstance(op, Resize) and op.side is not None else self.sizes
            for jigsaw in (*op.first, *op.second) if isinstance(op, Choice) else (op,):
                if not isinstance(jigsaw, Jigsaw):
                    continue
                if not sides:
                    raise ValueError(
                        f"view {self.name!r}: jigsaw comes before the image has one known side: put it after a "
                        "random_resized_crop, random_crop, center_crop or resize"
                    )
                for side in sides:
                    if side % jigsaw.grid:
                        raise ValueError(
                            f"view {self.name!r}: jigsaw's grid {jigsaw.grid} does not divide the side of {side} "
                            "pixels: choose another grid or size"
                        )


def derive(
    specs: Sequence[ViewSpec],
    parent: int,
    ops: Sequence[ViewOp],
    *,
    shared_ops: int | None = None,
    sizes: tuple[int, ...] | None = None,
    name: str = "",
) -> ViewSpec:
    """A view that continues an earlier one: the parent's first ops with the parent's draws, then ``ops``.

    At the parent's size the result is the parent's own picture (if all its ops are shared) with ``ops``
    applied to it; at another size it is the same box and colours at that resolution.

    Args:
        specs: the earlier views, in the order of their indices.
        parent: index into ``specs``; a view that is not itself derived.
        ops: what follows, with draws of its own.
        shared_ops: how many of the parent's ops to take; None is all. 1 shares the crop and nothing else.
        sizes: None is the parent's.
        name: of the new view.

    Raises:
        ValueError: if the parent does not exist or is derived itself.

    Example:
        >>> standard = ViewSpec((RandomResizedCrop(), HorizontalFlip()), (32,))
        >>> [op.name for op in derive([standard], 0, [Solarize(prob=1.0)]).ops]
        ['random_resized_crop', 'horizontal_flip', 'solarize']
    """
    if not 0 <= parent < len(specs):
        raise ValueError(f"derived_from {parent} is not the index of an earlier view: there are {len(specs)}")
    if specs[parent].derived_from is not None:
        raise ValueError(f"derived_from {parent} is itself a derived view: derive from {specs[parent].derived_from}")
    shared = len(specs[parent].ops) if shared_ops is None else shared_ops
    return ViewSpec(
        ops=(*specs[parent].ops[:shared], *ops),
        sizes=specs[parent].sizes if sizes is None else sizes,
        name=name,
        derived_from=parent,
        shared_ops=shared,
        partner=specs[parent].partner,
    )


def parameter_names(spec: ViewSpec) -> tuple[str, ...]:
    """Names of the columns of a view's parameters, such as ``gaussian_blur.sigma``.

    The second op of a kind is numbered: ``solarize_2.solarize``.
    """
    return _named_parameters(spec.ops)


def num_parameters(spec: ViewSpec) -> int:
    """How many numbers describe one image's view."""
    return sum(len(op.parameters) for op in spec.ops)


def _named_parameters(ops: Sequence[ViewOp]) -> tuple[str, ...]:
    names: list[str] = []
    seen: dict[str, int] = {}
    for op in ops:
        seen[op.name] = seen.get(op.name, 0) + 1
        prefix = op.name if seen[op.name] == 1 else f"{op.name}_{seen[op.name]}"
        names.extend(f"{prefix}.{parameter}" for parameter in op.parameters)
    return tuple(names)
