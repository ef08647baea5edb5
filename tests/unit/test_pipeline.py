"""Batches are fixed ahead; asynchrony only overlaps (docs/design.md, decision 1)."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from treeopo_storage import TreeStore

from tests.rollout_batches import rollout_batches
from treeopo.advantage import AdvantageSettings
from treeopo.engines.scripted import ScriptedEngine, TreeWorld
from treeopo.errors import EngineDeadError
from treeopo.records import Request, TrainBatch
from treeopo.rollout.batches import assemble
from treeopo.rollout.meter import EngineMeter
from treeopo.rollout.pipeline import Metrics, Pipeline, Stages
from treeopo.rollout.sampling.groups import GroupSampler
from treeopo.rollout.sampling.names import StartStates
from treeopo.rollout.settings import RolloutSettings

SETTINGS = RolloutSettings(group_size=4, batch_size=8, max_prompt_tokens=20, max_sequence_tokens=60)
STEPS = 6


class Harness:
    """The pipeline over the scripted engine, with a learner that takes its time and records what it was given."""

    def __init__(self, store: TreeStore, world: TreeWorld, settings: RolloutSettings, **engine: object) -> None:
        self.engine = ScriptedEngine(world, **engine)  # type: ignore[arg-type]
        self.learned: list[TrainBatch] = []
        self.steps: list[Metrics] = []
        sampler = GroupSampler(store, settings, seed=0, start=StartStates.UNIFORM)
        problem = world.problem("any")
        meter = EngineMeter(slots=SETTINGS.batch_size)
        rollouts = rollout_batches(
            sampler,
            self.engine,
            grade=lambda drawn, completion: world.grade(problem, completion.text),
            assemble=partial(assemble, settings=AdvantageSettings()),
            settings=settings,
            meter=meter,
        )
        publish = lambda version: self.engine.publish(version, Path("unused"))  # noqa: E731
        self.pipeline = Pipeline(Stages(rollouts.batch, self.learn, publish), settings.max_staleness, meter)

    async def learn(self, batch: TrainBatch) -> Metrics:
        await asyncio.sleep(0.002)
        self.learned.append(batch)
        return {"learner/loss": 0.0}

    async def run(self, first: int = 0, stop_at: int | None = None) -> None:
        async def on_step(version: int, metrics: Metrics) -> bool:
            self.steps.append(metrics)
            return version != stop_at

        await self.pipeline.run(first, STEPS, on_step)


def ragged(seed: int) -> Callable[[Request], float]:
    """Latencies from 0 to 8 ms that depend on the request alone."""
    return lambda request: random.Random(request.seed + seed).random() * 0.008


@pytest.mark.parametrize("staleness", [0, 1, 3])
async def test_every_batch_is_learned_once_in_order_and_no_token_is_staler_than_allowed(
    searched_store: TreeStore, world: TreeWorld, staleness: int
) -> None:
    harness = Harness(searched_store, world, replace(SETTINGS, max_staleness=staleness), latency=ragged(staleness))
    await harness.run()
    assert [batch.number for batch in harness.learned] == list(range(STEPS))
    for batch, metrics in zip(harness.learned, harness.steps, strict=True):
        staleness_T = np.concatenate([batch.number - row.versions for row in batch.sequences])
        assert 0 <= staleness_T.min() <= staleness_T.max() <= staleness
        assert metrics["rollout/staleness_max"] == staleness_T.max()
        assert metrics["rollout/staleness_mean"] == pytest.approx(staleness_T.mean())


async def test_asynchrony_is_used(searched_store: TreeStore, world: TreeWorld) -> None:
    harness = Harness(searched_store, world, replace(SETTINGS, max_staleness=1), latency=lambda request: 0.002)
    await harness.run()
    assert harness.engine.peak_in_flight > SETTINGS.batch_size
    assert max(step["rollout/staleness_max"] for step in harness.steps) == 1


def same(one: TrainBatch, other: TrainBatch) -> bool:
    pairs = zip(one.sequences, other.sequences, strict=True)
    return all(
        np.array_equal(a.token_ids, b.token_ids) and np.array_equal(a.advantages, b.advantages) for a, b in pairs
    )


async def test_without_staleness_latencies_change_nothing(searched_store: TreeStore, world: TreeWorld) -> None:
    """The synchronous trainer, sample for sample, whatever the engine's timing."""
    settings = replace(SETTINGS, max_staleness=0)
    slow, fast = (Harness(searched_store, world, settings, latency=ragged(seed)) for seed in (1, 2))
    await slow.run()
    await fast.run()
    assert all(same(a, b) for a, b in zip(slow.learned, fast.learned, strict=True))


async def test_a_run_stopped_and_resumed_learns_what_an_uninterrupted_one_does(
    searched_store: TreeStore, world: TreeWorld
) -> None:
    whole, halves = (Harness(searched_store, world, SETTINGS) for _ in range(2))
    await whole.run()
    await halves.run(stop_at=3)
    await halves.run(first=3)
    assert [batch.number for batch in halves.learned] == list(range(STEPS))
    assert all(same(a, b) for a, b in zip(whole.learned, halves.learned, strict=True))


async def test_a_dead_engine_ends_the_run_with_its_own_error_and_nothing_left_in_flight(
    searched_store: TreeStore, world: TreeWorld
) -> None:
    dead = {20: EngineDeadError("the engine died")}
    harness = Harness(searched_store, world, SETTINGS, failures=dead, latency=lambda request: 0.005)
    with pytest.raises(EngineDeadError, match="the engine died"):
        await harness.run()
    assert harness.engine.in_flight == 0
    assert len(asyncio.all_tasks()) == 1  # this test


async def test_cut_completions_are_wrong_and_counted(searched_store: TreeStore, world: TreeWorld) -> None:
    settings = replace(SETTINGS, max_prompt_tokens=12, max_sequence_tokens=13)  # one token is never a solution
    harness = Harness(searched_store, world, settings)
    await harness.run()
    assert all(step["rollout/reward"] == 0 and step["rollout/truncated_share"] == 1 for step in harness.steps)
    assert all(step["rollout/informative_share"] == 0 for step in harness.steps)


async def test_a_step_reports_of_advantages_and_tokens_what_the_learner_was_given(
    searched_store: TreeStore, world: TreeWorld
) -> None:
    """Where its time went is told on a simulated clock (test_meter.py)."""
    harness = Harness(searched_store, world, SETTINGS)
    await harness.run()
    for batch, metrics in zip(harness.learned, harness.steps, strict=True):
        advantages_GN = np.reshape([row.advantages[0] for row in batch.sequences], (-1, SETTINGS.group_size))
        assert metrics["advantage/variance"] == pytest.approx(advantages_GN.var(axis=1).mean(), abs=1e-6)
        assert metrics["rollout/informative_share"] == np.mean(advantages_GN.std(axis=1) > 0)
        assert metrics["rollout/tokens"] == sum(row.completion_length for row in batch.sequences)
    assert any(step["advantage/variance"] > 0 for step in harness.steps)
    shares = [step["advantage/constraint_satisfaction"] for step in harness.steps if step["advantage/constraints"]]
    assert shares
    assert all(0 <= share <= 1 for share in shares)
