"""Bounded staleness, proven over schedules: random latencies, learners, publications and engine deaths, simulated time.

What is asserted of every schedule: a token is never staler than eta when it is learned from (queue time included), nor
from the future; every group is learned from exactly once and in order; at most eta + 1 batches are in memory; however a
run ends, nothing stays in flight. eta = 0 is the synchronous trainer, sample for sample.
"""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from treeopo_storage import TreeStore

from tests.conftest import WORLD
from tests.profiles import examples
from tests.rollout_batches import rollout_batches
from treeopo.advantage import AdvantageMethod, AdvantageSettings, Scope
from treeopo.engines.scripted import Pieces, ScriptedEngine, ScriptedPolicy
from treeopo.engines.simulated_time import run_simulated
from treeopo.errors import EngineDeadError, EngineError
from treeopo.records import Completion, Outcomes, PromptGroup, Request, RolloutGroup, TrainBatch
from treeopo.rollout.batches import assemble
from treeopo.rollout.memory import OutcomeMemory
from treeopo.rollout.meter import EngineMeter
from treeopo.rollout.pipeline import Metrics, Pipeline, Stages
from treeopo.rollout.rollouts import RolloutBatches
from treeopo.rollout.sampling.groups import GroupSampler
from treeopo.rollout.sampling.names import ASK_THE_MEMORY, StartStates
from treeopo.rollout.settings import RolloutSettings
from treeopo.seeds import derive_seed

STEPS = 6
SETTINGS = RolloutSettings(group_size=3, batch_size=6, max_prompt_tokens=20, max_sequence_tokens=60)
SEED = 0

seconds = st.sampled_from([0.0, 0.25, 1.0, 3.0, 20.0])
durations = st.lists(seconds, min_size=STEPS, max_size=STEPS)


@dataclass(frozen=True)
class Schedule:
    """How long everything takes. deaths[n] is the request (of those it gets) at which the engine's n-th life ends."""

    staleness: int
    latency: float
    latency_seed: int
    learn: Sequence[float]
    publish: Sequence[float]
    deaths: Sequence[int] = ()

    def seconds(self, request: Request) -> float:
        """Heavy-tailed, as completion lengths are: most are short, one holds its batch up."""
        return self.latency * random.Random(request.seed ^ self.latency_seed).paretovariate(1.2)


schedules = st.builds(
    Schedule,
    staleness=st.integers(0, 4),
    latency=seconds,
    latency_seed=st.integers(0, 2**32),
    learn=durations,
    publish=durations,
    deaths=st.lists(st.integers(0, 20), max_size=3),
)
proof = settings(suppress_health_check=[HealthCheck.too_slow])


def changing_policy(prompt: str, rng: random.Random, version: int) -> Pieces:
    """What it says depends on the version, so a sample of the wrong one shows."""
    return WORLD(prompt, random.Random(rng.getrandbits(32) * 64 + version), version)


class RestartedEngine:
    """A new engine for each one that dies, under the policy published last; what was unfinished is asked again."""

    def __init__(self, schedule: Schedule, policy: ScriptedPolicy = changing_policy) -> None:
        self._schedule = schedule
        self._policy = policy
        self._deaths = iter(schedule.deaths)
        self._restarting = asyncio.Lock()
        self.version = 0
        self.lives: list[ScriptedEngine] = []
        self.seeds: list[int] = []
        self._start()

    def _start(self) -> None:
        number = next(self._deaths, None)
        failures = {} if number is None else {number: EngineDeadError("died")}
        self.lives.append(ScriptedEngine(self._policy, latency=self._schedule.seconds, failures=failures))
        self.lives[-1].version = self.version

    async def _replace(self, dead: ScriptedEngine) -> None:
        async with self._restarting:
            if dead is self.lives[-1]:
                await asyncio.sleep(1.5)
                self._start()

    async def generate(self, request: Request) -> Completion:
        self.seeds.append(request.seed)
        while True:
            engine = self.lives[-1]
            try:
                return await engine.generate(request)
            except EngineDeadError:
                await self._replace(engine)

    async def publish(self, version: int) -> None:
        self.version = version
        while True:
            engine = self.lives[-1]
            try:
                return await engine.publish(version, Path("unused"))
            except EngineDeadError:
                await self._replace(engine)


class Run:
    """One run of the pipeline under a schedule; `learn` asserts what must hold of a batch when it is learned from."""

    def __init__(
        self,
        store: TreeStore,
        schedule: Schedule,
        policy: ScriptedPolicy = changing_policy,
        sampler: GroupSampler | None = None,
        advantage: AdvantageSettings | None = None,
    ) -> None:
        self.schedule = schedule
        self.advantage = advantage or AdvantageSettings()
        self.engine = RestartedEngine(schedule, policy)
        self.meter = EngineMeter(slots=SETTINGS.batch_size)
        self.learned: list[TrainBatch] = []
        self.groups: dict[int, list[int]] = {}
        self.in_memory = 0
        self.peak_in_memory = 0
        self.fail_learning_at: int | None = None
        self.settings = replace(SETTINGS, max_staleness=schedule.staleness)
        self.sampler = sampler or cached_sampler(store)  # type: ignore[arg-type]
        self.memory = OutcomeMemory(store.structure(), self.settings, STEPS)
        self._rollouts = self._batches()
        self.stages = Stages(self.make_batch, self.learn, self.publish)

    def _batches(self) -> RolloutBatches:
        return rollout_batches(
            self.sampler, self.engine, grade, self.assemble, self.settings,
            seed=SEED, meter=self.meter, memory=self.memory,
        )  # fmt: skip

    def resume(self, version: int) -> None:
        """Everything but what a checkpoint of `version` holds is gone."""
        state = self.memory.state(version)
        self.memory = OutcomeMemory(self.sampler.structure, self.settings, STEPS)
        self.memory.restore(state, version)
        self._rollouts = self._batches()
        self.groups = {batch.number: self.groups[batch.number] for batch in self.learned}  # the rest is drawn again
        self.in_memory = 0

    async def make_batch(self, number: int) -> TrainBatch:
        self.in_memory += 1
        self.peak_in_memory = max(self.peak_in_memory, self.in_memory)
        return await self._rollouts.batch(number)

    async def assemble(self, number: int, groups: Sequence[RolloutGroup]) -> TrainBatch:
        assert number not in self.groups, "a batch was made twice"
        self.groups[number] = [group.drawn.number for group in groups]
        return await assemble(number, groups, self.advantage)

    async def learn(self, batch: TrainBatch) -> Metrics:
        assert batch.number == len(self.learned) == self.engine.version
        for sequence in batch.sequences:
            staleness = batch.number - sequence.versions
            assert staleness.min() >= 0
            assert staleness.max() <= self.schedule.staleness
        if self.fail_learning_at == batch.number:
            raise ArithmeticError("no finite loss")
        await asyncio.sleep(self.schedule.learn[batch.number])
        self.learned.append(batch)
        self.in_memory -= 1
        return {"learner/tokens": 1.0}

    async def publish(self, version: int) -> None:
        """The new version serves before the call returns, as it does with a real engine."""
        await asyncio.sleep(self.schedule.publish[version - 1] / 2)
        await self.engine.publish(version)
        await asyncio.sleep(self.schedule.publish[version - 1] / 2)

    async def on_step(self, version: int, metrics: Metrics) -> bool:
        assert 0 <= metrics["rollout/staleness_in_flight_mean"] <= metrics["rollout/staleness_mean"]
        assert metrics["rollout/staleness_max"] <= self.schedule.staleness
        assert (
            metrics["pipeline/seconds_step"]
            >= metrics["pipeline/seconds_waiting"] + metrics["pipeline/seconds_learning"] - 1e-9
        )
        return True

    def assert_nothing_is_left(self) -> None:
        assert self.meter.in_flight == 0
        assert [engine.in_flight for engine in self.engine.lives] == [0] * len(self.engine.lives)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    def assert_each_sample_was_asked_for_once(self) -> None:
        """By its own seed, whatever else was in flight."""
        groups, members = range(STEPS * SETTINGS.groups_per_batch), range(SETTINGS.group_size)
        assert sorted(self.engine.seeds) == sorted(derive_seed(SEED, group, i) for group in groups for i in members)

    def assert_learned_in_order(self) -> None:
        size = SETTINGS.groups_per_batch
        groups = [group for batch in self.learned for group in self.groups[batch.number]]
        assert groups == list(range(len(self.learned) * size))


async def grade(drawn: PromptGroup, completion: Completion) -> float:
    return await WORLD.grade(WORLD.problem("any"), completion.text)


@cache
def cached_sampler(store: TreeStore) -> GroupSampler:
    """Draws are pure, so thousands of schedules can share them."""
    sampler = GroupSampler(store, SETTINGS, SEED, StartStates.UNIFORM)
    drawn = cache(sampler.draw)
    sampler.draw = lambda number, known=None: drawn(number)  # type: ignore[method-assign]
    return sampler


def assert_bounded(store: TreeStore, schedule: Schedule, eta: int) -> None:
    """Run the pipeline with the gate of `eta` and assert the promises of `schedule.staleness`."""

    async def check() -> None:
        run = Run(store, schedule)
        await Pipeline(run.stages, eta, run.meter).run(0, STEPS, run.on_step)
        assert len(run.learned) == STEPS
        assert run.peak_in_memory <= schedule.staleness + 1
        run.assert_learned_in_order()
        run.assert_each_sample_was_asked_for_once()
        run.assert_nothing_is_left()

    run_simulated(check())


@examples(2, proof)
@given(schedule=schedules)
def test_no_token_is_staler_than_allowed_and_every_group_is_learned_once_in_order(
    searched_store: TreeStore, schedule: Schedule
) -> None:
    assert_bounded(searched_store, schedule, schedule.staleness)


@pytest.mark.slow
@examples(50, proof)
@given(schedule=schedules)
def test_thousands_of_schedules_keep_the_bound(searched_store: TreeStore, schedule: Schedule) -> None:
    assert_bounded(searched_store, schedule, schedule.staleness)


@pytest.mark.parametrize("staleness", range(4))
def test_the_proof_notices_a_gate_that_is_one_version_too_wide(searched_store: TreeStore, staleness: int) -> None:
    schedule = Schedule(staleness, latency=0.0, latency_seed=0, learn=[1.0] * STEPS, publish=[1.0] * STEPS)
    assert_bounded(searched_store, schedule, staleness)
    with pytest.raises(AssertionError):
        assert_bounded(searched_store, schedule, staleness + 1)


async def synchronous(run: Run) -> None:
    """The trainer that everyone has in mind: one batch, one request at a time, then a step, then the new policy."""
    for number in range(STEPS):
        run.in_memory += 1
        await run.learn(await run._rollouts.batch(number))
        await run.engine.publish(number + 1)


@proof
@given(schedule=schedules.map(lambda schedule: replace(schedule, staleness=0)))
def test_without_staleness_it_is_the_synchronous_trainer_sample_for_sample(
    searched_store: TreeStore, schedule: Schedule
) -> None:
    async def check() -> None:
        run = Run(searched_store, schedule)
        await Pipeline(run.stages, 0, run.meter).run(0, STEPS, run.on_step)
        expected = Run(searched_store, Schedule(0, 0.0, 0, [0.0] * STEPS, [0.0] * STEPS))
        await synchronous(expected)
        for ours, theirs in zip(run.learned, expected.learned, strict=True):
            for one, other in zip(ours.sequences, theirs.sequences, strict=True):
                np.testing.assert_array_equal(one.token_ids, other.token_ids)
                np.testing.assert_array_equal(one.versions, other.versions)
                np.testing.assert_array_equal(one.behaviour_logprobs, other.behaviour_logprobs)
                np.testing.assert_array_equal(one.advantages, other.advantages)

    run_simulated(check())


@proof
@given(schedule=schedules, moment=st.floats(0, 60))
def test_a_cancelled_run_leaves_nothing_in_flight(searched_store: TreeStore, schedule: Schedule, moment: float) -> None:
    async def check() -> None:
        run = Run(searched_store, schedule)
        task = asyncio.create_task(Pipeline(run.stages, schedule.staleness, run.meter).run(0, STEPS, run.on_step))
        await asyncio.wait([task], timeout=moment)
        task.cancel()
        cancelled = asyncio.get_running_loop().time()
        await asyncio.wait([task])
        assert asyncio.get_running_loop().time() == cancelled  # it waits for no answer
        run.assert_learned_in_order()
        run.assert_nothing_is_left()

    run_simulated(check())


@proof
@given(schedule=schedules, step=st.integers(0, STEPS - 1))
def test_an_error_of_the_learner_ends_the_run_with_nothing_in_flight(
    searched_store: TreeStore, schedule: Schedule, step: int
) -> None:
    async def check() -> None:
        run = Run(searched_store, schedule)
        run.fail_learning_at = step
        with pytest.raises(ArithmeticError, match="no finite loss"):
            await Pipeline(run.stages, schedule.staleness, run.meter).run(0, STEPS, run.on_step)
        assert len(run.learned) == step
        run.assert_nothing_is_left()

    run_simulated(check())


@proof
@given(schedule=schedules.map(lambda schedule: replace(schedule, deaths=())), number=st.integers(0, 35))
def test_a_request_that_cannot_be_served_ends_the_run_with_its_own_error(
    searched_store: TreeStore, schedule: Schedule, number: int
) -> None:
    async def check() -> None:
        run = Run(searched_store, schedule)
        run.engine.lives[0]._failures = {number: EngineError(f"request {number} was refused")}
        with pytest.raises(EngineError, match=f"request {number} was refused"):
            await Pipeline(run.stages, schedule.staleness, run.meter).run(0, STEPS, run.on_step)
        run.assert_learned_in_order()
        run.assert_nothing_is_left()

    run_simulated(check())


@proof
@given(schedule=schedules, stop=st.integers(1, STEPS - 1))
def test_a_run_stopped_between_two_steps_and_resumed_learns_every_group_once(
    searched_store: TreeStore, schedule: Schedule, stop: int
) -> None:
    async def check() -> None:
        run = Run(searched_store, schedule)

        async def stop_there(version: int, metrics: Metrics) -> bool:
            return version != stop

        await Pipeline(run.stages, schedule.staleness, run.meter).run(0, STEPS, stop_there)
        run.assert_nothing_is_left()
        run.resume(stop)
        await Pipeline(run.stages, schedule.staleness, run.meter).run(stop, STEPS, run.on_step)
        assert len(run.learned) == STEPS
        run.assert_learned_in_order()
        run.assert_nothing_is_left()

    run_simulated(check())


HISTORY = AdvantageSettings(method=AdvantageMethod.POSTERIOR, scope=Scope.HISTORY)


def remembering(store: TreeStore, schedule: Schedule, sampling: str) -> Run:
    """A run whose draws and advantages come from the student's outcomes. The policy says the same under every version,
    so that outcomes depend on what is drawn alone, and not on which version was in time to sample it.
    """
    settings = replace(SETTINGS, max_staleness=schedule.staleness)
    sampler = GroupSampler(store, settings, SEED, sampling, remembers=True)
    return Run(store, schedule, WORLD, sampler, HISTORY)


def assert_same(ours: Sequence[TrainBatch], theirs: Sequence[TrainBatch]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        for row, expected in zip(one.sequences, other.sequences, strict=True):
            np.testing.assert_array_equal(row.token_ids, expected.token_ids)
            np.testing.assert_array_equal(row.advantages, expected.advantages)


async def undisturbed(store: TreeStore, eta: int, sampling: str) -> list[TrainBatch]:
    run = remembering(store, Schedule(eta, 0.0, 0, [0.0] * STEPS, [0.0] * STEPS), sampling)
    await Pipeline(run.stages, eta, run.meter).run(0, STEPS, run.on_step)
    return run.learned


@proof
@given(schedule=schedules, sampling=st.sampled_from(sorted(ASK_THE_MEMORY)))
def test_what_a_batch_starts_from_and_is_compared_with_depends_on_no_ones_speed(
    searched_store: TreeStore, schedule: Schedule, sampling: str
) -> None:
    async def check() -> None:
        run = remembering(searched_store, schedule, sampling)
        await Pipeline(run.stages, schedule.staleness, run.meter).run(0, STEPS, run.on_step)
        assert_same(run.learned, await undisturbed(searched_store, schedule.staleness, sampling))

    run_simulated(check())


@proof
@given(schedule=schedules, stop=st.integers(1, STEPS - 1), sampling=st.sampled_from(sorted(ASK_THE_MEMORY)))
def test_a_resumed_run_draws_what_the_run_that_went_on_drew(
    searched_store: TreeStore, schedule: Schedule, stop: int, sampling: str
) -> None:
    async def check() -> None:
        run = remembering(searched_store, schedule, sampling)

        async def stop_there(version: int, metrics: Metrics) -> bool:
            return version != stop

        await Pipeline(run.stages, schedule.staleness, run.meter).run(0, STEPS, stop_there)
        run.resume(stop)
        await Pipeline(run.stages, schedule.staleness, run.meter).run(stop, STEPS, run.on_step)
        assert_same(run.learned, await undisturbed(searched_store, schedule.staleness, sampling))

    run_simulated(check())


class Impatient(OutcomeMemory):
    """Lets a batch know whatever is there."""

    def _upto(self, last: int) -> Outcomes:
        return super()._upto(max(self._newest, default=last))


@pytest.mark.parametrize("staleness", [1, 2])
def test_the_proof_notices_a_memory_that_knows_what_happens_to_be_there(
    searched_store: TreeStore, staleness: int
) -> None:
    async def learned(seconds: float) -> list[TrainBatch]:
        schedule = Schedule(staleness, latency=seconds, latency_seed=0, learn=[1.0] * STEPS, publish=[0.0] * STEPS)
        run = remembering(searched_store, schedule, StartStates.SUCCESS)
        run.memory.__class__ = Impatient
        await Pipeline(run.stages, staleness, run.meter).run(0, STEPS, run.on_step)
        return run.learned

    with pytest.raises(AssertionError):
        assert_same(run_simulated(learned(0.0)), run_simulated(learned(20.0)))
