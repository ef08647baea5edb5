"""When a run takes a checkpoint: every so many steps, and where steps are slow, before a kill could cost much."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

SECONDS = 30.0
"""Work that a kill may cost, beside the step under way."""

WORTH = 50
"""A checkpoint between two that are due by steps is taken at most every so many times what the last one took: writing
a large adapter with its optimiser never takes more than two hundredths of a run.
"""


class CheckpointDue:
    """Asked after each step; `taken` is the `with` block in which a checkpoint is written."""

    def __init__(self, every: int, clock: Callable[[], float] = monotonic) -> None:
        self._every = every
        self._clock = clock
        self._since = clock()
        self._took = 0.0

    def at(self, step: int) -> bool:
        return step % self._every == 0 or self._clock() - self._since >= max(SECONDS, WORTH * self._took)

    @contextmanager
    def taken(self) -> Iterator[None]:
        began = self._clock()
        yield
        self._since = self._clock()
        self._took = self._since - began
