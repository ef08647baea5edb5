"""What a command is busy with where it has nothing to count yet: told to whoever shows it, a screen or nobody.

    enter("starting the teacher's engine")     where the work begins
    detail("loading weights")                  what it is at, as often as that changes

Whoever listens does so for everything that is called or awaited inside its `with` block. Neither is a notice: of what
is said here nothing needs to be kept.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol


class Listener(Protocol):
    def enter(self, stage: str) -> None: ...

    def detail(self, text: str) -> None: ...


_listener: ContextVar[Listener | None] = ContextVar("stages", default=None)


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def enter(stage: str) -> None:
    if listener := _listener.get():
        listener.enter(stage)


def detail(text: str) -> None:
    if listener := _listener.get():
        listener.detail(text)
