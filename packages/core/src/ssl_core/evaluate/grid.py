"""A grid of settings: each is tried once, also after a stop, and the best on validation images is taken."""

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ssl_core import distributed
from ssl_core.evaluate.classifier import DivergedError, refuse_other
from ssl_core.evaluate.finetune_protocol import Setting
from ssl_core.files import write_json

logger = logging.getLogger(__name__)


class Point(NamedTuple):
    """A point of a grid and its score on the validation images, which is 0 where it diverged."""

    setting: Setting
    score: float
    diverged: bool


def choose_setting(
    grid: Sequence[Setting],
    measure: Callable[[Setting, Path | None], float],
    *,
    folder: Path | None = None,
    name: str = "grid",
    settings: Mapping[str, Any] | None = None,
) -> tuple[Setting, list[Point]]:
    """The first of the best settings, and how all did.

    Args:
        grid: settings to try.
        measure: function of a setting and a folder to work in that returns its score on validation images.
        folder: folder of ``NAME.json``, which keeps the scores so far, so that none is measured again; None keeps
            nothing.
        name: beginning of the file's and the folders' names.
        settings: plain values that tell it from other grids that could be continued.

    Raises:
        ValueError: if other settings have begun it, or all of the grid diverges.
    """
    points: list[Point] = []
    file = None if folder is None else folder / f"{name}.json"
    if file is not None and distributed.is_main() and file.exists():
        before = json.loads(file.read_text())
        refuse_other(file, before["settings"], json.loads(json.dumps(settings)))
        points = [Point(Setting(*setting), *rest) for setting, *rest in before["points"]]
    points = distributed.broadcast_object(points)
    for setting in grid[len(points) :]:
        work = None if folder is None else folder / f"{name}-{len(points)}"
        try:
            points.append(Point(setting, measure(setting, work), False))
        except DivergedError as error:
            points.append(Point(setting, 0.0, True))
            if distributed.is_main():
                logger.warning("%s: %s", setting_text(setting), error)
        if file is not None and work is not None and distributed.is_main():
            write_json(file, {"settings": settings, "points": points})
            shutil.rmtree(work)
        distributed.barrier()
    if all(point.diverged for point in points):
        raise ValueError(f"all {len(points)} settings of the grid diverged; give a smaller lr")
    return max(points, key=lambda point: point.score).setting, points


def setting_text(setting: Setting) -> str:
    """A setting in words.

    Example:
        >>> setting_text(Setting(None, 0.01, 1e-4))
        'lr 0.01, weight_decay 0.0001'
    """
    values = {name: value for name, value in setting._asdict().items() if value is not None}
    return ", ".join(f"{name} {value:.3g}" for name, value in values.items())


def at_end(setting: Setting, grid: Sequence[Setting]) -> list[str]:
    """The chosen values that are the first or the last of three or more, so that one outside may be better."""
    ends = []
    for name in Setting._fields:
        values = sorted({getattr(each, name) for each in grid if getattr(each, name) is not None})
        if len(values) > 2 and getattr(setting, name) in (values[0], values[-1]):
            ends.append(name)
    return ends
