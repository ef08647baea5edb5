"""Batches from a student's rollouts: draw groups, have the engine finish them, grade, turn rewards into advantages."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from treeopo.ports import Generate
from treeopo.records import Completion, Prompt, PromptGroup, Request, Rollout, RolloutGroup, TrainBatch
from treeopo.rollout.meter import EngineMeter, Metered
from treeopo.rollout.sampling.base import GroupSampler
from treeopo.rollout.settings import RolloutSettings
from treeopo.rollout.staleness import staleness_metrics
from treeopo.seeds import derive_seed
from treeopo.tasks import gather_or_cancel


class RolloutBatches:
    """Batch b is groups [b G, (b + 1) G); what it asks the engine depends on (seed, b, store) alone.

    A completion that ran out of tokens is wrong, whatever it says, and is not graded. `meter` counts the requests and
    knows which version serves. A completion also ends at any of the `stop` strings.
    """

    def __init__(
        self,
        sampler: GroupSampler,
        generate: Generate,
        grade: Callable[[PromptGroup, Completion], Awaitable[float]],
        assemble: Callable[[int, Sequence[RolloutGroup]], Awaitable[TrainBatch]],
        settings: RolloutSettings,
        seed: int,
        meter: EngineMeter,
        stop: tuple[str, ...] = (),
    ) -> None:
        self._sampler = sampler
        self._generate = Metered(generate, meter)
        self._meter = meter
        self._grade = grade
        self._assemble = assemble
        self._settings = settings
        self._seed = seed
        self._stop = stop

    async def batch(self, number: int) -> TrainBatch:
        """Batch `number`, whole. Cancelling it aborts its requests.

        Raises:
            EngineError: the engine refused or failed a request.
        """
        size = self._settings.groups_per_batch
        groups = await gather_or_cancel(self._group(number * size + index) for index in range(size))
        batch = await self._assemble(number, groups)
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        return replace(batch, metrics=batch.metrics | staleness_metrics(number, rollouts, self._settings.max_staleness))

    async def _group(self, number: int) -> RolloutGroup:
        drawn = self._sampler.draw(number)
        rollouts = await gather_or_cancel(
            self._rollout(drawn, index, prompt) for index, prompt in enumerate(drawn.prompts)
        )
        return RolloutGroup(drawn, tuple(rollouts))

    async def _rollout(self, drawn: PromptGroup, index: int, prompt: Prompt) -> Rollout:
        request = Request(
            token_ids=prompt.token_ids,
            max_tokens=self._settings.max_sequence_tokens - len(prompt.token_ids),
            seed=derive_seed(self._seed, drawn.number, index),
            temperature=self._settings.temperature,
            stop=self._stop,
        )
        completion = await self._generate.generate(request)
        # An engine may serve a version just before its publish returns.
        served = max(self._meter.version, int(completion.versions[-1]))
        is_cut = completion.finish_reason.is_cut
        return Rollout(prompt, completion, 0.0 if is_cut else await self._grade(drawn, completion), served)
