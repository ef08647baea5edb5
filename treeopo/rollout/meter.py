"""Engine occupancy, and where slots are free the reason: evaluation, end of run, publication or the staleness bound."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

from treeopo import stages
from treeopo.ports import Generate
from treeopo.records import Completion, Request
from treeopo.timeline import Timeline


class Idle(StrEnum):
    """Why fewer requests are in flight than the engine has slots; where several hold, the first of them counts.

    EVALUATING: the engine serves an evaluation. DRAINING: the run's last batch has been started. PUBLISHING: the next
    version is being published, and batches that wait for it. STARVED: the staleness bound holds the next batch back
    until the learner has taken its step.
    """

    EVALUATING = "evaluating"
    DRAINING = "draining"
    PUBLISHING = "publishing"
    STARVED = "starved"


class EngineMeter:
    """Integrates requests in flight over the event loop's time. Make it in a running loop.

    slots: requests that the engine works on at once; 0 where a run has no engine, and then nothing is reported.
    version: the newest policy version known to serve. `timeline` gets the requests in flight as a counter.
    """

    def __init__(self, slots: int = 0, timeline: Timeline | None = None) -> None:
        self.version = 0
        self.in_flight = 0
        self._slots = slots
        self._timeline = timeline or Timeline()
        self._clock = asyncio.get_running_loop().time
        self._active = dict.fromkeys(Idle, 0)
        self._why = Idle.STARVED
        self._since = self._settled = self._clock()
        self._idle_seconds = dict.fromkeys(Idle, 0.0)
        self._busy_slot_seconds = 0.0
        self._tokens = self._tokens_so_far = self._completions_so_far = 0

    @contextmanager
    def because(self, reason: Idle) -> Iterator[None]:
        """Inside the `with` block, an engine with free slots has them for `reason`."""
        self.mark(reason, +1)
        try:
            yield
        finally:
            self.mark(reason, -1)

    def mark(self, reason: Idle, change: int) -> None:
        """`because` where the reason begins and ends in different places: +1 begins, -1 ends."""
        self._settle()
        self._active[reason] += change
        self._why = next((each for each in Idle if self._active[each]), Idle.STARVED)

    def change(self, requests: int) -> None:
        """Add to the requests in flight."""
        self._settle()
        self.in_flight += requests
        self._timeline.count("requests in flight", self.in_flight)

    def count_completion(self, tokens: int) -> None:
        self._tokens += tokens
        self._completions_so_far += 1
        self._tokens_so_far += tokens
        stages.detail(f"{self._completions_so_far:,} completions, {self._tokens_so_far:,} tokens sampled")

    def take(self) -> dict[str, float]:
        """Figures since the last call; starts anew.

        seconds_REASON: seconds with a free slot, by reason. occupancy: mean share of the slots in use.
        tokens_per_second: completion tokens of the requests that ended, per second of the whole time.
        """
        if not self._slots:
            return {}
        self._settle()
        seconds = self._settled - self._since
        taken = {f"engine/seconds_{reason}": idle for reason, idle in self._idle_seconds.items()}
        taken["engine/occupancy"] = self._busy_slot_seconds / (seconds * self._slots) if seconds else 0.0
        taken["engine/tokens_per_second"] = self._tokens / seconds if seconds else 0.0
        self._since = self._settled
        self._idle_seconds = dict.fromkeys(Idle, 0.0)
        self._busy_slot_seconds = 0.0
        self._tokens = 0
        return taken

    def _settle(self) -> None:
        """Account for the time since the last change."""
        now = self._clock()
        passed = now - self._settled
        self._settled = now
        if self.in_flight < self._slots:
            self._busy_slot_seconds += self.in_flight * passed
            self._idle_seconds[self._why] += passed
        else:
            self._busy_slot_seconds += self._slots * passed


class Metered:
    """`Generate` that has each request counted by a meter."""

    def __init__(self, engine: Generate, meter: EngineMeter) -> None:
        self._engine = engine
        self._meter = meter

    async def generate(self, request: Request) -> Completion:
        self._meter.change(+1)
        try:
            completion = await self._engine.generate(request)
        finally:
            self._meter.change(-1)
        self._meter.count_completion(len(completion.token_ids))
        return completion
