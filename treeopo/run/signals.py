"""Stopping a run between two steps when the user or the scheduler asks for it."""

import asyncio
import os
import signal
import threading
from types import TracebackType
from typing import Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequest:
    """Inside the `with` block the first SIGINT, SIGTERM or SIGHUP (the terminal was closed) sets `requested`; a second
    one ends the process at once (the kernel ends its engine with it). A signal that is ignored stays so (nohup). Use it
    in a running event loop; outside the main thread, where Python hears of no signal, it requests nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._heard: list[signal.Signals] = []

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        for number in self._heard:
            asyncio.get_running_loop().add_signal_handler(number, self._receive, number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in self._heard:
            asyncio.get_running_loop().remove_signal_handler(number)

    def _receive(self, number: int) -> None:
        if self.requested:
            os._exit(128 + number)
        self.requested = True
