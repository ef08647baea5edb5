"""Batches from a student's rollouts: draw groups, have the engine finish them, grade, turn rewards into advantages."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

from treeopo.records import PromptGroup, Rollout, RolloutGroup, TrainBatch
from treeopo.rollout.finishing import Finish
from treeopo.rollout.memory import OutcomeMemory
from treeopo.rollout.pipeline import batch_track
from treeopo.rollout.sampling.groups import GroupSampler
from treeopo.rollout.settings import RolloutSettings
from treeopo.rollout.staleness import staleness_metrics
from treeopo.tasks import gather_or_cancel
from treeopo.timeline import Timeline

Assemble = Callable[[int, Sequence[RolloutGroup]], Awaitable[TrainBatch]]
Keep = Callable[[Sequence[RolloutGroup], TrainBatch], None]


@dataclass(frozen=True, slots=True)
class BatchParts:
    """What batches of rollouts are made with.

    baseline_rollouts: extra completions of each start state (advantage method mc). keep: is given every batch.
    """

    sampler: GroupSampler
    memory: OutcomeMemory
    finish: Finish
    assemble: Assemble
    timeline: Timeline = field(default_factory=Timeline)
    keep: Keep | None = None
    baseline_rollouts: int = 0


class RolloutBatches:
    """Batch b is groups [b M, b M + G) of its M candidates, what it asks the engine a function of (seed, b, store) and
    of the outcomes that it may know.

    With `no_signal` redraw a group whose rewards are all the same is replaced by the next candidate, as soon as that is
    known: the batch is then the first G candidates with a signal, whatever the order they come in, and where the M hold
    fewer, the first of the others with them (DAPO, Yu et al. 2025, arXiv 2503.14476, draws without a bound).
    """

    def __init__(self, parts: BatchParts, settings: RolloutSettings) -> None:
        self._parts = parts
        self._settings = settings

    async def batch(self, number: int) -> TrainBatch:
        """Batch `number`, whole. Cancelling it aborts its requests.

        Raises:
            EngineError: the engine refused or failed a request.
        """
        done = await self._groups(number)
        self._parts.memory.record(number, done)
        groups = _first_with_signal(done, self._settings.groups_per_batch)
        batch = await self._parts.assemble(number, groups)
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        batch = replace(
            batch,
            metrics=batch.metrics
            | staleness_metrics(number, rollouts, self._settings.max_staleness)
            | _spent(done, len(groups)),
        )
        if self._parts.keep is not None:
            self._parts.keep(groups, batch)
        return batch

    async def _groups(self, number: int) -> list[RolloutGroup]:
        """As many groups as a batch has, and those that were replaced, by their numbers."""
        size, candidates = self._settings.groups_per_batch, self._settings.candidates_per_batch
        known = self._parts.memory.known(number)
        drawn = [self._parts.sampler.draw(number * candidates + index, known) for index in range(candidates)]
        reserve, clock, began = iter(drawn[size:]), asyncio.get_running_loop().time, None

        async def until_one_has_a_signal(first: PromptGroup) -> list[RolloutGroup]:
            nonlocal began
            done = [await self._group(first)]
            while not done[-1].has_signal and (following := next(reserve, None)) is not None:
                began = clock() if began is None else began
                done.append(await self._group(following))
            return done

        done = await gather_or_cancel(map(until_one_has_a_signal, drawn[:size]))
        if began is not None:
            track = batch_track(number, self._settings.max_staleness)
            self._parts.timeline.add(track, f"batch {number} redraws", began, clock(), batch=number)
        return sorted((group for groups in done for group in groups), key=lambda group: group.drawn.number)

    async def _group(self, drawn: PromptGroup) -> RolloutGroup:
        size, each = len(drawn.prompts), self._parts.baseline_rollouts
        extra = list({prompt.node: prompt for prompt in drawn.prompts}.values()) * each
        rollouts = await gather_or_cancel(
            self._parts.finish(drawn, index, prompt) for index, prompt in enumerate((*drawn.prompts, *extra))
        )
        return RolloutGroup(drawn, tuple(rollouts[:size]), tuple(rollouts[size:]))


def _first_with_signal(done: Sequence[RolloutGroup], size: int) -> list[RolloutGroup]:
    """`size` of the groups: the first ones with a signal, and then the first of the others; by their numbers."""
    by_use = sorted(done, key=lambda group: not group.has_signal)  # a stable sort
    return sorted(by_use[:size], key=lambda group: group.drawn.number)


def _spent(done: Sequence[RolloutGroup], size: int) -> dict[str, float]:
    """What the batch asked of the engine, extra rollouts and groups that were replaced included."""
    rollouts: list[Rollout] = [rollout for group in done for rollout in (*group.rollouts, *group.extra)]
    return {
        "spent/completions": float(len(rollouts)),
        "spent/tokens": float(sum(len(rollout.completion.token_ids) for rollout in rollouts)),
        "spent/redrawn_groups": float(len(done) - size),
    }
