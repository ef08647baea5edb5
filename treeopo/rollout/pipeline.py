"""The asynchronous pipeline: batches fixed ahead, so that asynchrony only ever overlaps.

                    b <= v + eta                                            v + 1
    sampler.draw ──────────────▶ generate ─▶ grade ─▶ advantages ─▶ learn ─────────▶ publish
        ▲                        (engine)                         (learner)             │
        └───────────────────────────────────────────────────────────────────────────────┘

Group g depends on (seed, g, store) alone, or also on the outcomes of batches up to b - eta - 1 (`rollout.memory`), and
batch b is groups [b G, (b+1) G). One clock drives everything: the
learner. Once version v serves, the batches up to v + eta are started; batch v is awaited and learned from; v + 1 is
published.

    stage       waits for                                          unblocked by
    a batch     nothing; it starts as a whole                      version b - eta being published
    generate    a slot of the engine                               an earlier request's end
    grade       its own completion                                 the engine
    advantages  every rollout of the batch                         the slowest of them
    learn       batch v, whose requests are the engine's oldest    advantages of batch v
    publish     the step                                           learn
    on_step     version v + 1 serving; what may start has started  publish (a checkpoint delays no rollout)

The engine has free slots only while the started batches do not fill it: the bound holds the next one back (the learner
is the slower side), or the run ends. `EngineMeter` says for how long, and which.

A token of batch b is sampled at version b - eta or later and learned from at version b: staleness <= eta by
construction, queue time included. No rollout is dropped, whatever its length. At most eta + 1 batches are in memory.
eta = 0 is the synchronous trainer.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from treeopo.records import TrainBatch
from treeopo.rollout.meter import EngineMeter, Idle
from treeopo.timeline import Timeline

Metrics = dict[str, float]
_Rollout = tuple[TrainBatch, Metrics, float]
"""A finished batch, its metrics so far, and when it was finished."""


@dataclass(frozen=True, slots=True)
class Stages:
    """What the pipeline calls. `make_batch(b)` must not depend on anything but b and the policy that is published;
    `learn` returns the step's metrics; `publish` returns once v serves.
    """

    make_batch: Callable[[int], Awaitable[TrainBatch]]
    learn: Callable[[TrainBatch], Awaitable[Metrics]]
    publish: Callable[[int], Awaitable[None]]


class Pipeline:
    """Runs batches `first` to `last` (exclusive) through the stages. Make it in a running event loop.

    `meter` is told which version serves and why the engine may have free slots; the requests it counts are those of the
    stages that `make_batch` was made of. `timeline` gets a track for the learner, and one for each batch in memory.
    """

    def __init__(
        self,
        stages: Stages,
        max_staleness: int,
        meter: EngineMeter | None = None,
        timeline: Timeline | None = None,
    ) -> None:
        self._stages = stages
        self._max_staleness = max_staleness
        self._meter = meter or EngineMeter()
        self._timeline = timeline or Timeline()
        self._clock = asyncio.get_running_loop().time

    async def run(self, first: int, last: int, on_step: Callable[[int, Metrics], Awaitable[bool]]) -> None:
        """Leaves no request in flight: the first error cancels the started batches and is raised as it is.

        `on_step(v, metrics)` is awaited once version v serves; the run ends there, between two steps, if it says False.
        """
        started: deque[asyncio.Task[_Rollout]] = deque()
        next_batch = first

        def serve(version: int) -> None:
            """`version` serves: start the batches that it permits."""
            nonlocal next_batch
            self._meter.version = version
            while next_batch < last and next_batch <= version + self._max_staleness:
                started.append(asyncio.create_task(self._batch(next_batch)))
                next_batch += 1
                if next_batch == last:
                    self._meter.mark(Idle.DRAINING, +1)

        try:
            self._meter.take()
            step_began = self._clock()
            serve(first)
            for version in range(first, last):
                metrics = await self._step(started[0])
                started.popleft()
                serve(version + 1)
                step_ended = self._clock()
                metrics |= self._meter.take() | _rates(metrics, step_ended - step_began)
                step_began = step_ended
                if not await on_step(version + 1, metrics):
                    return
        finally:
            for task in started:
                task.cancel()
            await asyncio.gather(*started, return_exceptions=True)
            if first < next_batch == last:
                self._meter.mark(Idle.DRAINING, -1)

    async def _step(self, rollout: asyncio.Task[_Rollout]) -> Metrics:
        """Await one batch, learn from it, publish what was learned."""
        span = partial(self._timeline.span, "learner")
        with span("wait") as waiting:
            batch, metrics, finished = await rollout
        number = batch.number
        self._timeline.add(self._track(number), f"batch {number} in queue", finished, self._clock(), batch=number)
        with span(f"learn {number}", batch=number) as learning:
            metrics |= await self._stages.learn(batch)
        with span(f"publish {number + 1}", version=number + 1) as publishing, self._meter.because(Idle.PUBLISHING):
            await self._stages.publish(number + 1)
        metrics["pipeline/seconds_waiting"] = waiting.seconds
        metrics["pipeline/seconds_learning"] = learning.seconds
        metrics["pipeline/seconds_publishing"] = publishing.seconds
        return metrics

    async def _batch(self, number: int) -> _Rollout:
        with self._timeline.span(self._track(number), f"batch {number}", batch=number) as making:
            batch = await self._stages.make_batch(number)
        return batch, {**batch.metrics, "pipeline/seconds_batch": making.seconds}, making.began + making.seconds

    def _track(self, number: int) -> str:
        return batch_track(number, self._max_staleness)


def batch_track(number: int, max_staleness: int) -> str:
    """The timeline's track of a batch: b and b + eta + 1 are never in memory together, so they share one."""
    return f"batches {number % (max_staleness + 1)}"


def _rates(metrics: Metrics, seconds: float) -> Metrics:
    """The whole step, from the one before it, and the learner's speed over it."""
    tokens = metrics.get("learner/tokens", 0.0)
    return {"pipeline/seconds_step": seconds, "learner/tokens_per_second": tokens / seconds if seconds else 0.0}
