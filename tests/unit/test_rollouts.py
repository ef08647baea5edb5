"""What a batch asks the engine for, and what it is made of when that comes back."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from treeopo_storage import TreeStore

from tests.rollout_batches import rollout_batches
from treeopo.advantage import AdvantageMethod, AdvantageSettings
from treeopo.engines.scripted import ScriptedEngine, TreeWorld
from treeopo.engines.simulated_time import run_simulated
from treeopo.records import Completion, FinishReason, PromptGroup, RolloutGroup, TrainBatch
from treeopo.rollout.batches import assemble
from treeopo.rollout.finishing import GradeCompletion
from treeopo.rollout.sampling.groups import GroupSampler
from treeopo.rollout.sampling.names import StartStates
from treeopo.rollout.settings import NoSignal, RolloutSettings

SETTINGS = RolloutSettings(group_size=4, batch_size=8, max_prompt_tokens=20, max_sequence_tokens=60)


async def completions(store: TreeStore, world: TreeWorld, stop: tuple[str, ...]) -> list[Completion]:
    kept: list[Completion] = []

    async def grade(drawn: PromptGroup, completion: Completion) -> float:
        return 1.0

    async def keep(number: int, groups: Sequence[RolloutGroup]) -> TrainBatch:
        kept.extend(rollout.completion for group in groups for rollout in group.rollouts)
        return TrainBatch(number, (), {})

    sampler = GroupSampler(store, SETTINGS, 0, StartStates.ROOT)
    await rollout_batches(sampler, ScriptedEngine(world), grade, keep, SETTINGS, stop=stop).batch(0)
    return kept


async def test_a_completion_also_ends_where_its_prompts_say(searched_store: TreeStore, world: TreeWorld) -> None:
    """With examples before the question a base model goes on to ask itself the next one."""
    free = await completions(searched_store, world, ())
    assert all("####" in completion.text for completion in free)
    stopped = await completions(searched_store, world, ("####",))
    assert all(completion.text.endswith("####") for completion in stopped)
    assert {completion.finish_reason for completion in stopped} == {FinishReason.STOP}


class Rewards:
    """Grades by group: each draws from its own list of right and wrong, in whatever order its completions come back."""

    def __init__(self, alike: set[int]) -> None:
        self.alike = alike
        self.asked: Counter[int] = Counter()

    async def __call__(self, drawn: PromptGroup, completion: Completion) -> float:
        self.asked[drawn.number] += 1
        return float(drawn.number not in self.alike and self.asked[drawn.number] == 1)


async def learned_groups(
    store: TreeStore, world: TreeWorld, alike: set[int], latency_seed: int, candidates: int = 3
) -> tuple[list[int], TrainBatch]:
    """Batch 1, whose candidates are groups 6 to 11; those in `alike` have no signal."""
    learned: list[int] = []

    async def assembled(number: int, groups: Sequence[RolloutGroup]) -> TrainBatch:
        learned.extend(group.drawn.number for group in groups)
        return TrainBatch(number, (), {})

    settings = replace(SETTINGS, no_signal=NoSignal.REDRAW, candidates=candidates)
    engine = ScriptedEngine(world, latency=lambda request: random.Random(request.seed ^ latency_seed).random())
    sampler = GroupSampler(store, settings, 0, StartStates.UNIFORM)
    batches = rollout_batches(sampler, engine, Rewards(alike), assembled, settings)
    batches._parts.memory.record(0, [])
    return learned, await batches.batch(1)


@pytest.mark.parametrize(
    ("alike", "expected", "asked"),
    [
        (set(), [6, 7], 2),
        ({6}, [7, 8], 3),
        ({6, 7, 9}, [8, 10], 5),
        ({6, 8, 9, 10, 11}, [6, 7], 6),  # one has a signal: the first of the others is with it
        ({6, 7, 8, 9, 10, 11}, [6, 7], 6),
    ],
)
def test_a_batch_is_its_first_candidates_with_a_signal_whatever_the_order_they_come_in(
    searched_store: TreeStore, world: TreeWorld, alike: set[int], expected: list[int], asked: int
) -> None:
    for latency_seed in range(20):
        learned, batch = run_simulated(learned_groups(searched_store, world, alike, latency_seed))
        assert learned == expected
        assert batch.metrics["spent/completions"] == asked * 4
        assert batch.metrics["spent/redrawn_groups"] == asked - 2


def test_without_candidates_to_spare_a_batch_is_drawn_as_ever(searched_store: TreeStore, world: TreeWorld) -> None:
    learned, batch = run_simulated(learned_groups(searched_store, world, {2, 3}, 0, candidates=1))
    assert learned == [2, 3]
    assert batch.metrics["spent/completions"] == 8


async def test_mc_takes_extra_rollouts_of_each_prefix_and_counts_them(
    searched_store: TreeStore, world: TreeWorld
) -> None:
    kept: list[RolloutGroup] = []
    advantage = AdvantageSettings(method=AdvantageMethod.MC, baseline_rollouts=3)

    async def assembled(number: int, groups: Sequence[RolloutGroup]) -> TrainBatch:
        kept.extend(groups)
        return await assemble(number, groups, advantage)

    engine, problem = ScriptedEngine(world), world.problem("any")
    sampler = GroupSampler(searched_store, SETTINGS, 0, StartStates.UNIFORM)
    batch = await rollout_batches(
        sampler,
        engine,
        lambda drawn, completion: world.grade(problem, completion.text),
        assembled,
        SETTINGS,
        baseline_rollouts=3,
    ).batch(0)
    distinct = sum(len({rollout.prompt.node for rollout in group.rollouts}) for group in kept)
    assert batch.metrics["spent/completions"] == engine.requests == 8 + 3 * distinct
    assert len(batch.sequences) == 8
    assert batch.values is not None
    for group, values in zip(kept, np.split(batch.values, 2), strict=True):
        assert len({rollout.seed for rollout in (*group.rollouts, *group.extra)}) == 4 + len(group.extra)
        for rollout, value in zip(group.rollouts, values, strict=True):
            extra = [each.reward for each in group.extra if each.prompt.node == rollout.prompt.node]
            assert len(extra) == 3
            assert value == np.mean(extra)


async def test_a_batch_says_where_it_started_and_how_that_went(searched_store: TreeStore, world: TreeWorld) -> None:
    kept: list[RolloutGroup] = []

    async def assembled(number: int, groups: Sequence[RolloutGroup]) -> TrainBatch:
        kept.extend(groups)
        return await assemble(number, groups, AdvantageSettings())

    settings = replace(SETTINGS, batch_size=40)
    sampler = GroupSampler(searched_store, settings, 0, StartStates.UNIFORM)
    grade: GradeCompletion = lambda drawn, completion: world.grade(world.problem("any"), completion.text)  # noqa: E731
    batch = await rollout_batches(sampler, ScriptedEngine(world), grade, assembled, settings).batch(0)
    by_depth: dict[int, list[float]] = {}
    for group in kept:
        for rollout in group.rollouts:
            by_depth.setdefault(rollout.prompt.depth, []).append(rollout.reward)
    assert set(by_depth) == {0, 1, 2, 3}
    assert batch.metrics["rollout/reward_root"] == np.mean(by_depth[0])
    for depth in (1, 2, 3):
        assert batch.metrics[f"rollout/reward_depth_{depth}"] == np.mean(by_depth[depth])
    assert batch.metrics["rollout/root_share"] == len(by_depth[0]) / 40
    means = [np.mean([rollout.reward for rollout in group.rollouts]) for group in kept]
    assert batch.metrics["rollout/all_right_share"] == np.mean([mean == 1 for mean in means])
    assert batch.metrics["rollout/all_wrong_share"] == np.mean([mean == 0 for mean in means])
    for group, sequences in zip(kept, np.split(np.arange(40), 10), strict=True):
        for rollout, index in zip(group.rollouts, sequences, strict=True):
            row = batch.sequences[index]
            assert row.step_tokens == len(rollout.prompt.token_ids) - rollout.prompt.question_tokens
            assert row.prefix_is_solved == rollout.prompt.leads_to_success
