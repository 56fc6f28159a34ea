"""Progress bars: live in a terminal, and a line in half a minute in a file."""

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(total: int, unit: str, **options: Any) -> "tqdm[Any]":
    """A progress bar on standard error; all are made here, so that all are shown alike.

    Args:
        total: number of units in all.
        unit: name of a unit, such as images.
        options: further arguments of ``tqdm``.
    """
    interval_s = 0.2 if sys.stderr.isatty() else 30.0
    return tqdm(
        total=total, unit=unit, dynamic_ncols=True, mininterval=interval_s, maxinterval=max(interval_s, 10.0), **options
    )
