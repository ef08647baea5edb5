"""An event loop whose time jumps: hours of a pipeline over the scripted engine pass in milliseconds, every time alike.

`asyncio.sleep` and every timer work as they always do. When no task can go on, the clock jumps to the next timer; when
there is none, every task would wait for ever, and that is an error instead of a hanging test.
"""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class DeadlockError(RuntimeError):
    """No task can go on and no timer is set."""


class SimulatedLoop(asyncio.SelectorEventLoop):
    """Starts at time 0. For tasks and timers alone: nothing may come from threads, sockets or child processes."""

    def __init__(self) -> None:
        self._selector_clock = _JumpingSelector()
        super().__init__(self._selector_clock)

    def time(self) -> float:
        return self._selector_clock.now


class _JumpingSelector(selectors.SelectSelector):
    """Asked to wait for input, moves the clock by as much as it was asked to wait at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise DeadlockError("every task waits for another, and no timer is set")
        self.now += max(timeout, 0.0)
        return []


def run_simulated(coroutine: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` in simulated time.

    Raises:
        DeadlockError: every task waits, and nothing will ever wake one.
    """
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(coroutine)
