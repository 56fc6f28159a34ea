"""The run's log: one JSON line per record, TensorBoard events on request, and a progress bar."""

import contextlib
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from ssl_core.duration import duration
from ssl_core.files import write_atomically
from ssl_core.progress import progress_bar

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

# Seconds of steps, the first left out, after which the log says how long the rest will take.
_FORECAST_AFTER_S = 3.0


class Log:
    """Writes a run's records; silent in all processes but the first.

    Args:
        folder: run directory, for ``metrics.jsonl``, which is appended to, and for TensorBoard's events.
        start: number of optimizer steps already done. Later records, of a run that was cut off after its last
            checkpoint, are dropped, so that the file reads as if nothing had happened; so are those at ``start`` that
            have ``before_epoch``.
        total_images: number of images of the whole run, for the bar.
        images_per_step: number of images of one optimizer step over all processes.
        tensorboard: whether TensorBoard events are written too (needs the ``tensorboard`` extra).
        active: whether this process writes, which is the first one.
        quiet: whether neither a bar nor a forecast is shown.
    """

    def __init__(
        self,
        folder: Path,
        *,
        start: int,
        total_images: int,
        images_per_step: int,
        tensorboard: bool = False,
        active: bool = True,
        quiet: bool = False,
    ) -> None:
        self.active = active
        self._total_images, self._images_per_step = total_images, images_per_step
        self._first_step_at: float | None = None
        self._steps_since = 0
        self._has_forecast = quiet
        self._file: TextIO | None = None
        self._events: SummaryWriter | None = None
        initial = start * images_per_step
        self._bar = progress_bar(total_images, "img", initial=initial, unit_scale=True, disable=quiet or not active)
        if not active:
            return
        path = folder / "metrics.jsonl"
        _drop_records_after(path, start)
        self._file = path.open("a")
        if tensorboard:
            self._events = load_tensorboard()(str(folder))

    def advance(self) -> None:
        """Move the bar by one optimizer step; once, soon after the first, say how long training will take."""
        self._bar.update(self._images_per_step)
        if self._has_forecast:
            return
        now = time.perf_counter()
        if self._first_step_at is None:  # it starts workers and compiles
            self._first_step_at = now
            return
        self._steps_since += 1
        elapsed_s = now - self._first_step_at
        images_to_go = self._total_images - int(self._bar.n)
        if elapsed_s >= _FORECAST_AFTER_S and images_to_go > 0:
            images_per_s = self._steps_since * self._images_per_step / elapsed_s
            to_go = f"about {duration(images_to_go / images_per_s)} of training to go ({images_to_go:,} images)"
            self.say(f"{images_per_s:,.0f} images/s so far: {to_go}")
            self._has_forecast = True

    def record(self, step: int, values: Mapping[str, float], *, shown: str = "") -> None:
        """Write one record and show a line beside the bar.

        Args:
            step: number of optimizer steps done.
            values: numbers of the record, by name.
            shown: text beside the bar from now on; empty leaves it as it is.
        """
        if shown:
            self._bar.set_postfix_str(shown, refresh=False)
        if self._file is not None:
            try:
                self._file.write(json.dumps({"step": step, **values}) + "\n")
                self._file.flush()
            except OSError as error:
                raise OSError(
                    f"cannot write {self._file.name} ({error.strerror}); what was written before is intact"
                ) from error
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    def say(self, text: str) -> None:
        """Print a line without breaking the bar."""
        if self.active:
            self._bar.write(text, file=sys.stderr)

    def __enter__(self) -> "Log":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        if self._file is not None:
            with contextlib.suppress(OSError):  # of the record that could not be written
                self._file.close()
        if self._events is not None:
            self._events.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All records of a run, in order."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _drop_records_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    # A run that was killed while it wrote may have left half a line at the end.
    lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    kept = [line for line in lines if _is_before(json.loads(line), step)]
    write_atomically(path, lambda file: file.write("".join(kept).encode()))


def _is_before(record: Mapping[str, Any], step: int) -> bool:
    """Whether a record stands when a run continues after ``step``; what is done before an epoch will be done again."""
    return record["step"] < step or (record["step"] == step and "before_epoch" not in record)


def load_tensorboard() -> type["SummaryWriter"]:
    """TensorBoard's writer of events.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "train.tensorboard is on but tensorboard is not installed: pip install 'ssl-core[tensorboard]', "
            "or set --train.tensorboard false"
        ) from error
    return SummaryWriter
