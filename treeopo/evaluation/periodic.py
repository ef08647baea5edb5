"""Evaluation beside training: every n versions, on the policy that the engine serves then.

    version v serves ─▶ keep its adapter ─▶ complete and grade ─▶ RUN/evaluations.jsonl, RUN/best if it is the best
                         (learner)           (engine, beside the rollouts)

The rollouts and the learner's next step go on meanwhile. Only the publication after that waits (`settled`), because an
engine whose weights are replaced would otherwise finish the evaluation with another policy than it began with.
"""

import asyncio
import json
import logging
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

from treeopo.evaluation.accuracy import Scores
from treeopo.evaluation.intervals import mean_interval
from treeopo.ports import Tracker

BEST_RECORD = "evaluation.json"

_log = logging.getLogger(__name__)


class PeriodicEvaluation:
    """Starts an evaluation when one is due and keeps the best version's adapter in `best`, with its figures beside it.

    score: completes and grades `questions` with the policy that serves. save_adapter: writes the learner's adapter into
    a directory. One evaluation runs at a time.
    """

    def __init__(
        self,
        score: Callable[[], Awaitable[Scores]],
        save_adapter: Callable[[Path], Awaitable[None]],
        tracker: Tracker,
        best: Path,
        every: int,
        last: int,
    ) -> None:
        self._score = score
        self._save_adapter = save_adapter
        self._tracker = tracker
        self._best = best
        self._every = every
        self._last = last
        self._running: asyncio.Task[None] | None = None

    async def start(self, version: int) -> None:
        """Version `version` serves and is the learner's own: evaluate it, if that is due."""
        if version % self._every and version != self._last:
            return
        await self.settled()
        candidate = self._best.with_name(f".{self._best.name}-candidate")
        shutil.rmtree(candidate, ignore_errors=True)
        await self._save_adapter(candidate)
        self._running = asyncio.create_task(self._evaluate(version, candidate))

    async def settled(self) -> None:
        """Return once no evaluation runs.

        Raises:
            EngineError: the one that ran failed with it.
        """
        if self._running is not None:
            running, self._running = self._running, None
            await running

    async def cancel(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    async def _evaluate(self, version: int, candidate: Path) -> None:
        scores = await self._score()
        accuracy = mean_interval(scores.greedy)
        figures = {
            "eval/pass_at_1": accuracy.estimate,
            "eval/pass_at_1_low": accuracy.low,
            "eval/pass_at_1_high": accuracy.high,
            "eval/truncated_share": scores.truncated / len(scores.greedy),
        }
        self._tracker.write(version, figures)
        record = read_best(self._best)
        if record is None or accuracy.estimate > record["eval/pass_at_1"]:
            (candidate / BEST_RECORD).write_text(json.dumps({"version": version, **figures}) + "\n", encoding="utf-8")
            _replace(candidate, self._best)
        else:
            shutil.rmtree(candidate)


def read_best(directory: Path) -> dict[str, float] | None:
    """Version and figures of the best policy so far; None before the first evaluation, and where they are damaged."""
    path = directory / BEST_RECORD
    if not path.exists():
        return None
    try:
        record: dict[str, float] = json.loads(path.read_bytes())
    except ValueError:
        _log.warning("%s is damaged; the next evaluation takes its place", path)
        return None
    return {name.replace("eval_", "eval/"): value for name, value in record.items()}  # version 0.1 wrote eval_...


def _replace(new: Path, place: Path) -> None:
    """Put a directory in the place of another; a crash between the two renames leaves the new one beside it."""
    old = place.with_name(f".{place.name}-before")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        os.replace(place, old)
    os.replace(new, place)
    shutil.rmtree(old, ignore_errors=True)
