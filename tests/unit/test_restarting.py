"""An engine that dies or hangs is replaced, and nobody who asked it notices more than the time."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from treeopo.engines.restarting import RestartingEngine
from treeopo.engines.scripted import ScriptedEngine, TreeWorld
from treeopo.engines.settings import RestartSettings
from treeopo.engines.simulated_time import run_simulated
from treeopo.errors import EngineDeadError, EngineError, ModelError
from treeopo.records import Completion, Request, WeightFormat

WORLD = TreeWorld(branching=3, depth=4, success=lambda letters: 0.5)
SETTINGS = RestartSettings(max_restarts=2, backoff_seconds=1.0, hang_seconds=100.0)
FOREVER = 1e9
DEAD = EngineDeadError("gone; its log is here")


class Factory:
    """Makes the scripted engines it was given, one a start; an error among them is what that start raises."""

    def __init__(self, *lives: ScriptedEngine | Exception) -> None:
        self.lives = list(lives)
        self.started: list[ScriptedEngine] = []
        self.times: list[float] = []

    async def __call__(self) -> ScriptedEngine:
        self.times.append(asyncio.get_running_loop().time())
        life = self.lives.pop(0)
        if isinstance(life, Exception):
            raise life
        self.started.append(life)
        return life

    async def open(self) -> RestartingEngine:
        return await RestartingEngine.open(self, SETTINGS)


class DeafEngine(ScriptedEngine):
    """Serves, but takes no policy: raises what it was given, or hangs."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__(WORLD, latency=lambda request: 4.0)
        self._error = error

    async def publish(self, version: int, path: Path) -> None:
        if self._error:
            raise self._error
        await asyncio.sleep(FOREVER)


def scripted(
    dies_at: int | None = None, latency: Callable[[Request], float] = lambda request: 4.0, weight_format: str = "merged"
) -> ScriptedEngine:
    failures = {} if dies_at is None else {dies_at: DEAD}
    return ScriptedEngine(WORLD, latency=latency, failures=failures, weight_format=WeightFormat(weight_format))


async def ask(engine: RestartingEngine, count: int) -> list[Completion]:
    prompt = [ord(character) for character in WORLD.question]
    return await asyncio.gather(*(engine.generate(Request(prompt, 100, seed)) for seed in range(count)))


def texts(completions: list[Completion]) -> list[str]:
    return [completion.text for completion in completions]


@pytest.fixture(scope="module")
def expected() -> list[str]:
    async def undisturbed() -> list[str]:
        engine = await Factory(scripted()).open()
        try:
            return texts(await ask(engine, 12))
        finally:
            await engine.close()

    return run_simulated(undisturbed())


@pytest.mark.parametrize("weight_format", ["merged", "adapter"])
def test_a_death_mid_batch_changes_no_answer_and_the_policy_is_published_again(
    expected: list[str], weight_format: str
) -> None:
    async def scenario() -> None:
        factory = Factory(scripted(dies_at=7, weight_format=weight_format), scripted(weight_format=weight_format))
        engine = await factory.open()
        await engine.publish(3, Path("v3"))
        completions = await ask(engine, 12)
        assert texts(completions) == expected
        assert {version for completion in completions for version in completion.versions} == {3}
        assert factory.started[1].published == [(3, Path("v3"))]
        assert factory.started[1].requests == 12, "each unfinished request is asked once more, and only once"
        assert (engine.restarts, engine.versions_in_use) == (1, frozenset({3}))
        await engine.close()

    run_simulated(scenario())


def test_a_hung_engine_counts_as_dead_and_a_slow_one_does_not(expected: list[str]) -> None:
    async def scenario() -> None:
        slow = Factory(scripted(latency=lambda request: 3.9 * SETTINGS.hang_seconds))  # a burst each 97.5 seconds
        engine = await slow.open()
        assert texts(await ask(engine, 12)) == expected
        assert engine.restarts == 0
        await engine.close()

        hung = Factory(scripted(latency=lambda request: FOREVER), scripted())
        engine = await hung.open()
        assert texts(await ask(engine, 12)) == expected
        assert engine.restarts == 1
        assert SETTINGS.hang_seconds <= hung.times[1] - hung.times[0] <= 1.5 * SETTINGS.hang_seconds
        await engine.close()

    run_simulated(scenario())


def test_an_idle_engine_never_hangs() -> None:
    async def scenario() -> None:
        engine = await Factory(scripted()).open()
        await asyncio.sleep(50 * SETTINGS.hang_seconds)
        assert len(await ask(engine, 3)) == 3
        assert engine.restarts == 0
        await engine.close()

    run_simulated(scenario())


def test_a_death_or_hang_during_a_publication_publishes_the_old_policy_and_then_the_new() -> None:
    async def scenario(broken: DeafEngine) -> None:
        factory = Factory(broken, scripted())
        engine = await factory.open()
        await engine.publish(4, Path("v4"))
        assert factory.started[1].published == [(4, Path("v4"))]
        assert engine.restarts == 1
        await engine.close()

    run_simulated(scenario(DeafEngine(DEAD)))
    run_simulated(scenario(DeafEngine()))


def test_a_publication_during_a_restart_waits_and_requests_then_begin_on_it() -> None:
    async def scenario() -> None:
        factory = Factory(scripted(dies_at=2), scripted())
        engine = await factory.open()
        await engine.publish(1, Path("v1"))
        asked = asyncio.create_task(ask(engine, 6))
        await asyncio.sleep(0.5)  # the engine is dead, the next one not started
        await engine.publish(2, Path("v2"))
        assert factory.started[1].published == [(1, Path("v1")), (2, Path("v2"))]
        assert {int(completion.versions[-1]) for completion in await asked} == {2}
        await engine.close()

    run_simulated(scenario())


def test_a_replacement_that_dies_fails_to_start_or_refuses_the_policy_is_replaced_after_a_longer_wait(
    expected: list[str],
) -> None:
    async def scenario(second: ScriptedEngine | Exception) -> None:
        factory = Factory(scripted(dies_at=5), second, scripted())
        engine = await factory.open()
        await engine.publish(1, Path("v1"))
        assert texts(await ask(engine, 12)) == expected
        assert len(factory.times) == 3
        assert factory.times[1] >= 1.0
        assert factory.times[2] - factory.times[1] >= 2.0, "the wait doubles"
        await engine.close()

    for second in (scripted(dies_at=0), ModelError("no memory"), DeafEngine(EngineError("no")), DeafEngine()):
        run_simulated(scenario(second))


def test_after_too_many_failures_in_a_row_everyone_is_told_in_one_line_that_names_the_log() -> None:
    async def scenario() -> None:
        factory = Factory(*(scripted(dies_at=0) for _ in range(5)))
        engine = await factory.open()
        prompt = [ord(character) for character in WORLD.question]
        requests = (engine.generate(Request(prompt, 100, seed)) for seed in range(4))
        results = await asyncio.gather(*requests, return_exceptions=True)
        assert {type(result) for result in results} == {EngineDeadError}
        message = str(results[0])
        assert "3 times in a row" in message
        assert "log is here" in message
        assert "\n" not in message
        assert len(factory.started) == 1 + SETTINGS.max_restarts
        with pytest.raises(EngineDeadError, match="in a row"):
            await engine.publish(1, Path("v1"))
        await engine.close()

    run_simulated(scenario())


def test_failures_with_answers_in_between_are_not_in_a_row() -> None:
    async def scenario() -> None:
        factory = Factory(*(scripted(dies_at=2) for _ in range(6)))
        engine = await factory.open()
        for _ in range(10):
            await ask(engine, 1)
        assert engine.restarts == 4
        await engine.close()

    run_simulated(scenario())


def test_a_refused_request_is_the_asker_s_problem_and_kills_nothing() -> None:
    async def scenario() -> None:
        engine = await Factory(ScriptedEngine(WORLD, failures={1: EngineError("too long")})).open()
        await ask(engine, 1)
        with pytest.raises(EngineError, match="too long"):
            await ask(engine, 1)
        await ask(engine, 1)
        assert engine.restarts == 0
        await engine.close()

    run_simulated(scenario())


def test_closing_ends_a_restart_under_way_and_leaves_no_task() -> None:
    async def scenario() -> None:
        engine = await Factory(scripted(dies_at=0), scripted()).open()
        asked = asyncio.create_task(ask(engine, 2))
        await asyncio.sleep(0.5)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        await engine.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_simulated(scenario())


def test_calls_that_wait_for_a_restart_are_told_when_the_engine_is_closed() -> None:
    async def scenario() -> None:
        factory = Factory(scripted(dies_at=0), scripted())
        engine = await factory.open()
        asked = asyncio.create_task(ask(engine, 1))
        await asyncio.sleep(0.1)  # the engine is dead, the next one not started
        published = asyncio.create_task(engine.publish(1, Path("v1")))
        await asyncio.sleep(0.1)
        await engine.close()
        for told in await asyncio.gather(asked, published, return_exceptions=True):
            assert isinstance(told, EngineDeadError)
            assert str(told) == "the engine was closed"
        assert len(factory.started) == 1
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_simulated(scenario())


def test_scores_are_asked_for_again_of_the_engine_that_comes_after() -> None:
    async def scenario() -> None:
        ids = [np.array([3, 4, 5, 6], np.int32), np.array([7, 8], np.int32)]
        dead = ScriptedEngine(WORLD, likelihood=lambda prefix, text: 0.0)
        await dead.close()
        engine = await Factory(dead, ScriptedEngine(WORLD, likelihood=lambda prefix, text: -float(len(prefix)))).open()
        scores = await engine.score(ids, [2, 1])
        assert [score.tolist() for score in scores] == [[-2, 0], [-1]]
        assert engine.restarts == 1
        await engine.close()

    run_simulated(scenario())
