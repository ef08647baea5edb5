"""Several engines as one, proven on scripted engines that die, come back and come back with the wrong policy."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from treeopo_storage import TreeStore

from tests.profiles import examples
from tests.rollout_batches import rollout_batches
from treeopo.advantage import AdvantageSettings
from treeopo.engines.balanced import BalancedEngine
from treeopo.engines.scripted import ScriptedEngine, TreeWorld
from treeopo.errors import ConfigError, EngineDeadError, EngineError, ModelError
from treeopo.ports import Engine
from treeopo.records import Completion, Request, TrainBatch, WeightFormat
from treeopo.rollout.batches import assemble
from treeopo.rollout.pipeline import Metrics, Pipeline, Stages
from treeopo.rollout.sampling.groups import GroupSampler
from treeopo.rollout.sampling.names import StartStates
from treeopo.rollout.settings import RolloutSettings

WORLD = TreeWorld(branching=3, depth=3, success=lambda letters: 0.5)
PROMPT = [ord(character) for character in WORLD.question]
POLICY = Path("policy")


def request(seed: int) -> Request:
    return Request(PROMPT, 60, seed)


def dying(*numbers: int, latency: float = 0.0) -> ScriptedEngine:
    """Dies at these requests, counted from 0."""
    failures = {number: EngineDeadError("process gone") for number in numbers}
    return ScriptedEngine(WORLD, failures=failures, latency=lambda request: latency)


class Hosts:
    """`places[i]` are the engines that host i starts, one after the other; None is a failed start. Sleeping waits for
    `allow`, so nothing comes back before a test says so.
    """

    def __init__(self, *places: Sequence[ScriptedEngine | None]) -> None:
        self.places = [list(place) for place in places]
        self.allow = asyncio.Event()
        self.pauses: list[float] = []

    def starts(self) -> list[Callable[[], Awaitable[Engine]]]:
        def start_of(place: list[ScriptedEngine | None]) -> Callable[[], Awaitable[Engine]]:
            async def start() -> Engine:
                engine = place.pop(0)
                if engine is None:
                    raise EngineDeadError("refused")
                return engine

            return start

        return [start_of(place) for place in self.places]

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await self.allow.wait()

    async def engine(self) -> BalancedEngine:
        return await BalancedEngine.start(self.starts(), self.sleep)


async def answers(engine: Engine, count: int) -> list[Completion]:
    return await asyncio.gather(*(engine.generate(request(seed)) for seed in range(count)))


async def settled() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def test_requests_go_where_the_fewest_are_in_flight() -> None:
    slow, fast = dying(latency=3600), dying()
    engine = await Hosts([slow], [fast]).engine()
    stuck = [asyncio.create_task(engine.generate(request(seed))) for seed in range(2)]
    await settled()
    for seed in range(10):
        await engine.generate(request(seed))
    assert slow.requests == 1
    assert fast.requests == 11
    for task in stuck:
        task.cancel()
    await asyncio.gather(*stuck, return_exceptions=True)
    await engine.close()


@examples(0.6)
@given(deaths=st.lists(st.integers(0, 40) | st.none(), min_size=2, max_size=4), count=st.integers(1, 40))
def test_whoever_dies_whenever_every_request_is_answered_as_by_one_engine(deaths: list[int | None], count: int) -> None:
    """As long as one lives: each answer is that of its own seed, none is lost, none is double."""

    async def check() -> None:
        engines = [dying(*([] if death is None else [death]), latency=1e-4) for death in deaths]
        engine = await Hosts(*[[one] for one in engines], [dying()]).engine()
        found = await answers(engine, count)
        expected = await answers(ScriptedEngine(WORLD), count)
        assert [one.token_ids.tolist() for one in found] == [one.token_ids.tolist() for one in expected]
        await engine.close()

    asyncio.run(check())


async def test_a_dead_engine_s_requests_are_issued_again_elsewhere_with_their_own_seeds() -> None:
    doomed, other = dying(3, latency=1e-4), dying(latency=1e-4)
    engine = await Hosts([doomed], [other]).engine()
    found = await answers(engine, 12)
    alone = await answers(ScriptedEngine(WORLD), 12)
    assert [one.text for one in found] == [one.text for one in alone]
    assert doomed.requests + other.requests > 12
    assert other.requests >= 8
    await engine.close()


async def test_a_publication_returns_when_all_the_living_serve_it() -> None:
    first, dead, third = dying(), dying(0), dying()
    hosts = Hosts([first], [dead], [third])
    engine = await hosts.engine()
    with pytest.raises(EngineDeadError):
        await dead.generate(request(0))
    await engine.publish(1, POLICY)
    assert (first.version, third.version) == (1, 1)
    assert {version for one in await answers(engine, 9) for version in one.versions} == {1}
    await engine.close()


async def test_an_engine_that_comes_back_has_the_current_policy_before_it_has_a_request() -> None:
    back = dying()
    hosts = Hosts([dying(0), None, back], [dying(latency=1e-3)])
    engine = await hosts.engine()
    await answers(engine, 4)
    await engine.publish(1, Path("one"))
    await engine.publish(2, Path("two"))
    assert back.requests == 0
    hosts.allow.set()
    await settled()
    assert back.published == [(2, Path("two"))]
    assert hosts.pauses == [1.0, 2.0]
    found = await answers(engine, 20)
    assert back.requests > 0
    assert {version for one in found for version in one.versions} == {2}
    await engine.close()


async def test_a_policy_published_while_an_engine_comes_back_reaches_it_too() -> None:
    class SlowToTake(ScriptedEngine):
        async def publish(self, version: int, path: Path) -> None:
            await asyncio.sleep(0.01)
            await super().publish(version, path)

    back = SlowToTake(WORLD)
    hosts = Hosts([dying(0), back], [dying()])
    engine = await hosts.engine()
    await answers(engine, 2)
    await engine.publish(1, Path("one"))
    hosts.allow.set()
    await settled()
    await engine.publish(2, Path("two"))
    assert back.published == [(1, Path("one")), (2, Path("two"))]
    await engine.close()


async def test_when_all_are_dead_one_line_says_so_and_the_first_back_ends_that() -> None:
    back = dying()
    hosts = Hosts([dying(0), back], [dying(0)])
    engine = await hosts.engine()
    with pytest.raises(EngineDeadError, match=r"^all 2 engines are dead; the last: process gone$"):
        await engine.generate(request(0))
    with pytest.raises(EngineDeadError, match="all 2 engines are dead"):
        await engine.publish(1, POLICY)
    hosts.allow.set()
    await settled()
    assert (await engine.generate(request(0))).versions[0] == 1
    await engine.close()


async def test_one_that_refuses_a_request_is_not_dead() -> None:
    engine = await Hosts([ScriptedEngine(WORLD, failures={0: EngineError("no room")})], [dying()]).engine()
    with pytest.raises(EngineError, match="no room"):
        await engine.generate(request(0))
    await answers(engine, 4)
    await engine.close()


async def test_a_start_that_fails_ends_those_that_succeeded() -> None:
    started = dying()

    async def refuse() -> Engine:
        await asyncio.sleep(0)
        raise ModelError("reads 64 tokens")

    with pytest.raises(ModelError, match="reads 64"):
        await BalancedEngine.start([*Hosts([started]).starts(), refuse])
    with pytest.raises(EngineDeadError, match="closed"):
        await started.generate(request(0))


async def test_engines_that_take_policies_in_different_forms_do_not_make_one() -> None:
    hosts = Hosts(
        [ScriptedEngine(WORLD, weight_format=WeightFormat.ADAPTER)],
        [ScriptedEngine(WORLD, weight_format=WeightFormat.MERGED)],
    )
    with pytest.raises(ConfigError, match="some servers take adapters and others merged weights"):
        await hosts.engine()


async def test_an_older_version_stays_in_use_while_any_member_still_answers_under_it() -> None:
    slow = ScriptedEngine(WORLD, weight_format=WeightFormat.ADAPTER, latency=lambda request: 3600.0)
    engine = await Hosts([slow], [ScriptedEngine(WORLD, weight_format=WeightFormat.ADAPTER)]).engine()
    await engine.publish(1, POLICY)
    stuck = asyncio.create_task(engine.generate(request(0)))
    await settled()
    await engine.publish(2, POLICY)
    assert engine.versions_in_use == {1, 2}
    stuck.cancel()
    await asyncio.gather(stuck, return_exceptions=True)
    assert engine.versions_in_use == {2}
    await engine.close()


async def test_closing_leaves_no_engine_and_no_attempt_behind() -> None:
    dead, living = dying(0), dying()
    engine = await Hosts([dead], [living]).engine()
    await answers(engine, 3)
    await engine.close()
    with pytest.raises(EngineDeadError):
        await living.generate(request(0))
    assert len(asyncio.all_tasks()) == 1


async def test_a_closed_engine_starts_none_of_its_members_again() -> None:
    hosts = Hosts([dying(), dying()], [dying(), dying()])
    engine = await hosts.engine()
    await engine.close()
    for call in (engine.generate(request(0)), engine.publish(1, POLICY)):
        with pytest.raises(EngineDeadError, match="the engines were closed"):
            await call
    assert [len(place) for place in hosts.places] == [1, 1]
    assert len(asyncio.all_tasks()) == 1


async def train(store: TreeStore, engine: Engine) -> list[TrainBatch]:
    """Four steps of the synchronous trainer over `engine`, without a learner; policies are published all the same."""
    settings = RolloutSettings(
        group_size=4, batch_size=8, max_prompt_tokens=20, max_sequence_tokens=60, max_staleness=0
    )
    learned: list[TrainBatch] = []

    async def learn(batch: TrainBatch) -> Metrics:
        learned.append(batch)
        return {}

    async def go_on(version: int, metrics: Metrics) -> bool:
        return True

    rollouts = rollout_batches(
        GroupSampler(store, settings, seed=0, start=StartStates.UNIFORM),
        engine,
        grade=lambda drawn, completion: WORLD.grade(WORLD.problem("any"), completion.text),
        assemble=partial(assemble, settings=AdvantageSettings()),
        settings=settings,
    )
    stages = Stages(rollouts.batch, learn, lambda version: engine.publish(version, POLICY))
    await Pipeline(stages, settings.max_staleness).run(0, 4, go_on)
    return learned


@pytest.mark.parametrize("death", [0, 5, 12, 15])
async def test_a_run_that_loses_one_of_two_engines_learns_what_it_would_have_learned(
    searched_store: TreeStore, death: int
) -> None:
    engine = await Hosts([dying(death, latency=1e-4)], [dying(latency=1e-4)]).engine()
    survived = await train(searched_store, engine)
    untroubled = await train(searched_store, ScriptedEngine(WORLD))
    assert len(survived) == len(untroubled) == 4
    for batch, expected in zip(survived, untroubled, strict=True):
        for sequence, other in zip(batch.sequences, expected.sequences, strict=True):
            assert sequence.token_ids.tolist() == other.token_ids.tolist()
            assert sequence.versions.tolist() == other.versions.tolist()
            assert sequence.advantages.tolist() == other.advantages.tolist()
    await engine.close()
