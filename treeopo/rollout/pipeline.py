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

from treeopo.ports import Generate
from treeopo.records import Completion, Draw, DrawnGroup, FinishReason, Group, Request, Sample, TrainBatch
from treeopo.rollout.sampler import GroupSampler
from treeopo.rollout.settings import RolloutSettings
from treeopo.seeds import derive_seed
from treeopo.tasks import gather_or_cancel

Metrics = dict[str, float]


@dataclass(frozen=True, slots=True)
class Stages:
    """What the pipeline calls, in order. `learn` returns the step's metrics; `publish` returns once v serves."""

    generate: Generate
    grade: Callable[[DrawnGroup, Completion], float]
    assemble: Callable[[int, list[Group]], TrainBatch]
    learn: Callable[[TrainBatch], Awaitable[Metrics]]
    publish: Callable[[int], Awaitable[None]]


class Pipeline:
    """Runs batches `first` to `last` (exclusive) through the stages."""

    def __init__(self, sampler: GroupSampler, stages: Stages, settings: RolloutSettings, seed: int) -> None:
        self._sampler = sampler
        self._stages = stages
        self._settings = settings
        self._seed = seed

    async def run(self, first: int, last: int, on_step: Callable[[int, Metrics], Awaitable[bool]]) -> None:
        """Leaves no request in flight: the first error cancels the started batches and is raised as it is.

        `on_step(v, metrics)` is awaited once version v serves; the run ends there, between two steps, if it says False.
        """
        started: deque[asyncio.Task[tuple[TrainBatch, Metrics]]] = deque()
        next_batch = first
        try:
            for version in range(first, last):
                while next_batch < last and next_batch <= version + self._settings.max_staleness:
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
        size = self._settings.groups_per_batch
        groups = await gather_or_cancel(self._group(number * size + index) for index in range(size))
        batch = self._stages.assemble(number, groups)
        return batch, {**batch.metrics, "seconds_rollout": time.monotonic() - began}

    async def _group(self, number: int) -> Group:
        drawn = self._sampler.draw(number)
        samples = await gather_or_cancel(self._sample(drawn, index, draw) for index, draw in enumerate(drawn.draws))
        return Group(drawn, tuple(samples))

    async def _sample(self, drawn: DrawnGroup, index: int, draw: Draw) -> Sample:
        request = Request(
            token_ids=draw.token_ids,
            max_tokens=self._settings.max_sequence_tokens - len(draw.token_ids),
            seed=derive_seed(self._seed, drawn.number, index),
            temperature=self._settings.temperature,
        )
        completion = await self._stages.generate.generate(request)
        cut = completion.finish_reason is FinishReason.LENGTH
        return Sample(draw, completion, 0.0 if cut else self._stages.grade(drawn, completion))
