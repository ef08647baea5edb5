"""What a tracker is told about its run, and what stands between a tracker and the run.

FanOut ─▶ JsonLines                           the run's own record: its error ends the run
   ├────▶ Guarded ─▶ TensorBoard              dropped with one warning when it fails
   └────▶ Guarded ─▶ InThread ─▶ a service    and a slow one holds up no step
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from treeopo.errors import described
from treeopo.ports import Tracker

_log = logging.getLogger(__name__)
_PATIENCE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class RunInfo:
    """A run as its trackers know it.

    path: the run directory. config: its resolved settings as plain JSON data. resume_at: the step it goes on from;
    figures of later steps, written before, are superseded. 0: the run is new.
    """

    path: Path
    name: str
    config: Mapping[str, Any]
    resume_at: int = 0


class FanOut:
    """A tracker that forwards to all of `trackers`, in their order."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = tuple(trackers)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for tracker in self._trackers:
            tracker.write(step, metrics)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


class Guarded:
    """A tracker that is dropped, with one warning, when it raises: the run goes on and the other trackers with it."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name = name
        self._tracker = tracker
        self._dropped = False

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._dropped:
            return
        try:
            self._tracker.write(step, metrics)
        except Exception as error:  # noqa: BLE001  whatever a service or a user's tracker raises
            self._dropped = True
            _log.warning(
                "tracker %s failed at step %d (%s); it gets no more figures, metrics.jsonl has them all",
                self._name,
                step,
                described(error),
            )

    def close(self) -> None:
        try:
            self._tracker.close()
        except Exception as error:  # noqa: BLE001  as above
            if not self._dropped:
                self._dropped = True
                _log.warning(
                    "tracker %s failed at its end (%s); it may lack figures, metrics.jsonl has them all",
                    self._name,
                    described(error),
                )


class InThread:
    """A tracker whose `write` and `close` run in a thread of their own, in order, so that no step waits for them.

    What one raises, the next `write` or `close` raises. `close` waits `patience` seconds for what is left to write, and
    then raises TimeoutError; the thread keeps no process alive.
    """

    def __init__(self, tracker: Tracker, patience: float = _PATIENCE_SECONDS) -> None:
        self._tracker = tracker
        self._patience = patience
        self._left: SimpleQueue[tuple[int, Mapping[str, float]] | None] = SimpleQueue()
        self._error: Exception | None = None
        self._thread = Thread(target=self._work, name=f"tracker {type(tracker).__name__}", daemon=True)
        self._thread.start()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._raise()
        self._left.put((step, dict(metrics)))

    def close(self) -> None:
        self._left.put(None)
        self._thread.join(self._patience)
        if self._thread.is_alive():
            raise TimeoutError(f"it has not taken everything within {self._patience:g} s")
        self._raise()

    def _work(self) -> None:
        try:
            while (row := self._left.get()) is not None:
                self._tracker.write(*row)
        except Exception as error:  # noqa: BLE001  raised where the next figures are given
            self._error = error
        try:
            self._tracker.close()
        except Exception as error:  # noqa: BLE001  as above
            self._error = self._error or error

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error


def continued(run: RunInfo, service: str) -> str | None:
    """The id under which `service` knows the run; None where it begins there: in a new run, or one that never was in
    it.
    """
    return _known(run).get(service) if run.resume_at else None


def remember(run: RunInfo, service: str, run_id: str) -> None:
    """Keep the id for a run that is resumed, in RUN/trackers.json."""
    path = _ids(run)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(_known(run) | {service: run_id}) + "\n", encoding="utf-8")
    os.replace(partial, path)


def _known(run: RunInfo) -> dict[str, str]:
    with suppress(FileNotFoundError, ValueError):
        known: dict[str, str] = json.loads(_ids(run).read_text(encoding="utf-8"))
        return known
    return {}


def _ids(run: RunInfo) -> Path:
    return run.path / "trackers.json"
