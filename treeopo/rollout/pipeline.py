"""The asynchronous pipeline: batches fixed ahead, so that asynchrony only ever overlaps.

                    b <= v + eta                                            v + 1
    sampler.draw ──────────────▶ generate ─▶ grade ─▶ advantages ─▶ learn ─────────▶ publish
        ▲                        (engine)                         (learner)             │
        └───────────────────────────────────────────────────────────────────────────────┘

Group g depends on (seed, g, store) alone and batch b is groups [b G, (b+1) G). One clock drives everything: the
learner. At version v the batches up to v + eta are started; batch v is awaited and learned from; v + 1 is published.

    a batch    waits for version b - eta to be published; nothing else
    the learner waits for batch v, whose requests are then the oldest in the engine
    the engine idles only if every started batch is complete, i.e. if the learner is the slower side

A token of batch b is sampled at version b - eta or later and learned from at version b: staleness <= eta by
construction, queue time included. No sample is dropped, whatever its length. eta = 0 is the synchronous trainer.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from treeopo.records import TrainBatch

Metrics = dict[str, float]


@dataclass(frozen=True, slots=True)
class Stages:
    """What the pipeline calls. `make_batch(b)` must not depend on anything but b and the policy that is published;
    `learn` returns the step's metrics; `publish` returns once v serves.
    """

    make_batch: Callable[[int], Awaitable[TrainBatch]]
    learn: Callable[[TrainBatch], Awaitable[Metrics]]
    publish: Callable[[int], Awaitable[None]]


class Pipeline:
    """Runs batches `first` to `last` (exclusive) through the stages."""

    def __init__(self, stages: Stages, max_staleness: int) -> None:
        self._stages = stages
        self._max_staleness = max_staleness

    async def run(self, first: int, last: int, on_step: Callable[[int, Metrics], Awaitable[bool]]) -> None:
        """Leaves no request in flight: the first error cancels the started batches and is raised as it is.

        `on_step(v, metrics)` is awaited once version v serves; the run ends there, between two steps, if it says False.
        """
        started: deque[asyncio.Task[tuple[TrainBatch, Metrics]]] = deque()
        next_batch = first
        try:
            for version in range(first, last):
                while next_batch < last and next_batch <= version + self._max_staleness:
                    started.append(asyncio.create_task(self._batch(next_batch)))
                    next_batch += 1
                waited = time.monotonic()
                batch, metrics = await started.popleft()
                learning = time.monotonic()
                metrics |= await self._stages.learn(batch)
                publishing = time.monotonic()
                await self._stages.publish(version + 1)
                metrics["seconds_waiting"] = learning - waited
                metrics["seconds_learning"] = publishing - learning
                metrics["seconds_publishing"] = time.monotonic() - publishing
                if not await on_step(version + 1, metrics):
                    return
        finally:
            for task in started:
                task.cancel()
            await asyncio.gather(*started, return_exceptions=True)

    async def _batch(self, number: int) -> tuple[TrainBatch, Metrics]:
        began = time.monotonic()
        batch = await self._stages.make_batch(number)
        return batch, {**batch.metrics, "seconds_rollout": time.monotonic() - began}
