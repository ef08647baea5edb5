"""Stopping a run between two steps when the user or the scheduler asks for it."""

import asyncio
import os
import signal
from types import TracebackType
from typing import Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Inside the `with` block the first SIGINT or SIGTERM sets `requested`; a second one ends the process at once
    (the kernel ends its engine with it). Use it in the main thread, in a running event loop.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._receive, number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in _SIGNALS:
            asyncio.get_running_loop().remove_signal_handler(number)

    def _receive(self, number: int) -> None:
        if self.requested:
            os._exit(128 + number)
        self.requested = True
