"""What each side of a run did when, in Chrome's trace format: open RUN/timeline.json in https://ui.perfetto.dev.

The file is the format's array form, one event a line, so a killed run leaves one that viewers still read (they allow
for the missing `]`). A resumed run goes on in the same file, under a process name of its own, after the last event.
"""

import asyncio
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

COUNTER_SECONDS = 0.05
"""Changes of a counter that follow each other faster are left out, all but the last of them."""


@dataclass(slots=True)
class Span:
    """`seconds` are known when its `with` block ends."""

    began: float
    seconds: float = 0.0


class Timeline:
    """Spans on named tracks, and counters. Times are the event loop's; without a file only the spans are timed."""

    def __init__(self, file: TextIO | None = None, process: int = 1, offset: float = 0.0) -> None:
        self._file = file
        self._process = process
        self._clock = asyncio.get_running_loop().time
        self._origin = self._clock() - offset
        self._tracks: dict[str, int] = {}
        self._shown: dict[str, float] = {}  # when each counter was written last
        self._held_back: dict[str, tuple[float, float]] = {}

    @classmethod
    def open(cls, path: Path, name: str) -> "Timeline":
        """A timeline in the file `path`, after what an earlier process may have left there."""
        events = read_timeline(path)
        process = 1 + max((event["pid"] for event in events), default=0)
        end = max((event.get("ts", 0) + event.get("dur", 0) for event in events), default=0) / 1e6
        partial = path.with_suffix(".partial")
        partial.write_text("[\n" + ",\n".join(map(json.dumps, events)), encoding="utf-8")
        os.replace(partial, path)
        timeline = cls(path.open("a", encoding="utf-8"), process, end)
        timeline._write({"name": "process_name", "ph": "M", "args": {"name": name}}, separator=",\n" if events else "")
        return timeline

    @contextmanager
    def span(self, track: str, name: str, **details: Any) -> Iterator[Span]:
        """The `with` block as a span; it is written however the block ends."""
        span = Span(self._clock())
        try:
            yield span
        finally:
            ended = self._clock()
            span.seconds = ended - span.began
            self.add(track, name, span.began, ended, **details)

    def add(self, track: str, name: str, began: float, ended: float, **details: Any) -> None:
        """A span that is over, in seconds of the event loop. Spans of one track may nest but not overlap."""
        if self._file is None:
            return
        if track not in self._tracks:
            self._tracks[track] = len(self._tracks) + 1
            self._write({"name": "thread_name", "ph": "M", "tid": self._tracks[track], "args": {"name": track}})
        times = {"ts": self._microseconds(began), "dur": round((ended - began) * 1e6)}
        self._write({"name": name, "ph": "X", "tid": self._tracks[track], **times, "args": details})

    def count(self, name: str, value: float) -> None:
        """The counter `name` is `value` from now on."""
        if self._file is None:
            return
        now = self._clock()
        if now - self._shown.get(name, -COUNTER_SECONDS) < COUNTER_SECONDS:
            self._held_back[name] = (now, value)
            return
        if name in self._held_back:
            self._write_count(name, *self._held_back.pop(name))
        self._write_count(name, now, value)
        self._shown[name] = now

    def close(self) -> None:
        if self._file is not None:
            for name, held_back in self._held_back.items():
                self._write_count(name, *held_back)
            self._file.write("\n]\n")
            self._file.close()

    def _write_count(self, name: str, at: float, value: float) -> None:
        self._write({"name": name, "ph": "C", "ts": self._microseconds(at), "args": {name: value}})

    def _write(self, event: dict[str, Any], separator: str = ",\n") -> None:
        assert self._file is not None
        self._file.write(separator + json.dumps({**event, "pid": self._process}))
        self._file.flush()

    def _microseconds(self, seconds: float) -> int:
        return round((seconds - self._origin) * 1e6)


def read_timeline(path: Path) -> list[dict[str, Any]]:
    """The events in the file so far; one that a crash tore is left out."""
    if not path.exists():
        return []
    events = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            event = json.loads(line.removesuffix(","))
        except json.JSONDecodeError:
            continue
        if isinstance(event, dict):
            events.append(event)
    return events
