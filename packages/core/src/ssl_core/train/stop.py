"""A run that is told to stop finishes its step first."""

import signal
from types import FrameType

from ssl_core import distributed


class StopSignal:
    """Remembers SIGINT or SIGTERM until the current step is done; a second one acts at once."""

    def __init__(self) -> None:
        self.number = 0

    @property
    def name(self) -> str:
        """Name of the signal that came, ``SIGTERM`` say."""
        return signal.Signals(self.number).name

    def asked(self, may_communicate: bool) -> bool:
        """True when any process was told to stop.

        Args:
            may_communicate: True at steps where all processes may exchange what they know (it is a device
                sync); with one process it does not matter.
        """
        if distributed.world_size() == 1:
            return self.number != 0
        if not may_communicate:
            return False
        self.number = max(distributed.gather_objects(self.number))
        return self.number != 0

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        signal.signal(number, self._previous[signal.Signals(number)])

    def __enter__(self) -> "StopSignal":
        self._previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in self._previous:
            signal.signal(number, self._remember)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
