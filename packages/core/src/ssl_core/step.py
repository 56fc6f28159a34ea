"""The place in the training, which everything that changes over time is a function of."""

from typing import NamedTuple


class Step(NamedTuple):
    """The place in the training: everything about time that a forward or an update may depend on.

    It is passed in and not counted by the method, so that a forward has no hidden state, and a resumed run knows its
    schedules and permutations without restoring anything.

    Example:
        >>> Step(index=50, total=101, steps_per_epoch=20).progress
        0.5
        >>> Step(index=50, total=101, steps_per_epoch=20).epoch
        2.5
    """

    index: int  # type: ignore[assignment]  # hides tuple.index; optimizer steps done before this one
    total: int  # optimizer steps of the whole run
    steps_per_epoch: int
    micro: int = 0  # which micro-batch of the step, with gradient accumulation

    @property
    def progress(self) -> float:
        """Fraction of the run, 0 at the first step and 1 at the last."""
        return self.index / max(1, self.total - 1)

    @property
    def epoch(self) -> float:
        """Epochs done before this step, with the fraction of the current one."""
        return self.index / self.steps_per_epoch
