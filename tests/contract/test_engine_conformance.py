"""Every engine keeps the same promises; here those that need no model. vLLM's are in tests/integration."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path

import pytest

from treeopo.engines.balanced import BalancedEngine
from treeopo.engines.conformance import PROMPT, EngineConformance, Policies
from treeopo.engines.restarting import RestartingEngine
from treeopo.engines.scripted import ScriptedEngine, TreeWorld
from treeopo.engines.settings import RestartSettings
from treeopo.errors import EngineDeadError
from treeopo.ports import Engine
from treeopo.records import Completion, FloatArray, IntArray, Request, WeightFormat

WORLD = TreeWorld(branching=5, depth=80, success=lambda letters: 0.5)


class ScriptedConformance(EngineConformance):
    """Under both weight formats."""

    @pytest.fixture(params=list(WeightFormat))
    def weight_format(self, request: pytest.FixtureRequest) -> WeightFormat:
        return WeightFormat(request.param)

    @pytest.fixture
    def scripted(self, weight_format: WeightFormat) -> Callable[..., Awaitable[ScriptedEngine]]:
        async def start(dies_at: int | None = None) -> ScriptedEngine:
            return ScriptedEngine(
                WORLD,
                weight_format=weight_format,
                latency=lambda request: request.max_tokens / 1000,
                likelihood=WORLD.likelihood,
                max_model_tokens=self.max_model_tokens,
                failures={} if dies_at is None else {dies_at: EngineDeadError("gone")},
            )

        return start


class TestScripted(ScriptedConformance):
    @pytest.fixture
    def start(self, scripted: Callable[..., Awaitable[Engine]]) -> Callable[[], Awaitable[Engine]]:
        return scripted


class TestBalanced(ScriptedConformance):
    @pytest.fixture
    def start(self, scripted: Callable[..., Awaitable[Engine]]) -> Callable[[], Awaitable[Engine]]:
        async def start() -> Engine:
            return await BalancedEngine.start([scripted, scripted])

        return start


class TestBalancedThatLostOne(ScriptedConformance):
    """One member is dead, and another attempt to start it is a minute away."""

    @pytest.fixture
    def start(self, scripted: Callable[..., Awaitable[Engine]]) -> Callable[[], Awaitable[Engine]]:
        async def start() -> Engine:
            engine = await BalancedEngine.start([lambda: scripted(dies_at=0), scripted], lambda _: asyncio.sleep(60))
            await engine.generate(Request(PROMPT, 1, seed=0))
            return engine

        return start


class TestRestarting(ScriptedConformance):
    @pytest.fixture
    def start(self, scripted: Callable[..., Awaitable[ScriptedEngine]]) -> Callable[[], Awaitable[Engine]]:
        async def start() -> Engine:
            return await RestartingEngine.open(scripted, RestartSettings())

        return start


class TestRestarted(ScriptedConformance):
    """The first engine is dead, the second serves."""

    @pytest.fixture
    def start(self, scripted: Callable[..., Awaitable[ScriptedEngine]]) -> Callable[[], Awaitable[Engine]]:
        async def start() -> Engine:
            lives = iter((0, None))
            engine = await RestartingEngine.open(
                lambda: scripted(dies_at=next(lives)), RestartSettings(backoff_seconds=0)
            )
            await engine.generate(Request(PROMPT, 1, seed=0))
            assert engine.restarts == 1
            return engine

        return start


class IgnoresSeeds(ScriptedEngine):
    async def generate(self, request: Request) -> Completion:
        return await super().generate(replace(request, seed=0))


class SeedsGreedy(ScriptedEngine):
    async def generate(self, request: Request) -> Completion:
        return await super().generate(replace(request, temperature=1.0))


class CutsPrompts(ScriptedEngine):
    async def generate(self, request: Request) -> Completion:
        return await super().generate(replace(request, token_ids=request.token_ids[-100:]))


class StopsNowhere(ScriptedEngine):
    async def generate(self, request: Request) -> Completion:
        return await super().generate(replace(request, stop=()))


class ScoresWrongly(ScriptedEngine):
    async def score(self, token_ids: Sequence[IntArray], prefix_lengths: Sequence[int]) -> list[FloatArray]:
        return [score - 1 for score in await super().score(token_ids, prefix_lengths)]


class NeverForgets(ScriptedEngine):
    """As one that keeps the file of every policy for ever."""

    @property
    def versions_in_use(self) -> frozenset[int]:
        return super().versions_in_use | {version for version, _ in self.published}


class TakesNoPolicy(ScriptedEngine):
    async def publish(self, version: int, path: Path) -> None:
        pass


class AnswersWhenClosed(ScriptedEngine):
    async def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("flawed", "test"),
    [
        (IgnoresSeeds, EngineConformance.test_the_answer_depends_on_the_seed_and_not_on_the_company),
        (SeedsGreedy, EngineConformance.test_at_temperature_0_the_seed_has_no_say),
        (CutsPrompts, EngineConformance.test_a_prompt_that_leaves_no_room_is_refused_and_the_engine_unharmed),
        (StopsNowhere, EngineConformance.test_a_stop_string_ends_the_completion_with_the_token_that_completes_it),
        (ScoresWrongly, EngineConformance.test_scores_are_the_log_probabilities_of_what_the_newest_policy_sampled),
        (NeverForgets, EngineConformance.test_a_publication_serves_every_request_that_begins_after_it),
        (NeverForgets, EngineConformance.test_a_cancelled_request_is_aborted_and_its_version_no_longer_in_use),
        (TakesNoPolicy, EngineConformance.test_a_publication_serves_every_request_that_begins_after_it),
        (
            AnswersWhenClosed,
            EngineConformance.test_it_begins_with_version_0_and_once_closed_leaves_no_process_and_answers_no_more,
        ),
    ],
)
async def test_an_engine_that_breaks_a_promise_fails_the_suite(
    flawed: type[ScriptedEngine], test: Callable[..., Awaitable[None]], tmp_path: Path
) -> None:
    async def start() -> ScriptedEngine:
        return flawed(WORLD, likelihood=WORLD.likelihood, max_model_tokens=EngineConformance.max_model_tokens)

    given = {"start": start, "engine": await start(), "policies": Policies(tmp_path)}
    wanted = {name: fixture for name, fixture in given.items() if name in signature(test).parameters}
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        await test(EngineConformance(), **wanted)
