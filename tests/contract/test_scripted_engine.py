"""What is particular to the scripted engine, and the promises of `Tokenize` and `Grade`."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from treeopo.engines.scripted import CharTokenizer, ScriptedEngine, TreeWorld
from treeopo.errors import EngineDeadError, EngineError
from treeopo.records import FinishReason, Request

WORLD = TreeWorld(branching=3, depth=2, success=lambda letters: 0.5)
TOKENIZE = CharTokenizer()
PROMPT = TOKENIZE.encode(WORLD.question)


def request(seed: int = 1, max_tokens: int = 100, stop: tuple[str, ...] = (), temperature: float = 1.0) -> Request:
    return Request(PROMPT, max_tokens, seed, temperature, stop)


def test_tokenizer_returns_what_it_was_given_and_drops_the_end_of_text() -> None:
    assert TOKENIZE.decode([*TOKENIZE.encode("aé\n\nb"), TOKENIZE.eos_token_id]) == "aé\n\nb"


async def test_a_full_answer_ends_with_the_end_of_text_token() -> None:
    completion = await ScriptedEngine(WORLD).generate(request())
    assert completion.finish_reason is FinishReason.STOP
    assert completion.token_ids[-1] == TOKENIZE.eos_token_id
    assert completion.text == TOKENIZE.decode(completion.token_ids.tolist())
    assert len(completion.token_ids) == len(completion.logprobs) == len(completion.versions)


async def test_a_stop_string_ends_the_answer_and_its_tokens_are_included() -> None:
    completion = await ScriptedEngine(WORLD).generate(request(stop=("\n\n",)))
    assert completion.finish_reason is FinishReason.STOP
    assert completion.text[1:] == "\n\n"


async def test_the_same_seed_gives_the_same_tokens_whatever_else_is_in_flight() -> None:
    alone = await ScriptedEngine(WORLD).generate(request(seed=7))
    crowd = ScriptedEngine(WORLD)
    together = await asyncio.gather(*(crowd.generate(request(seed=seed)) for seed in range(12)))
    np.testing.assert_array_equal(together[7].token_ids, alone.token_ids)
    assert len({completion.text for completion in together}) > 1
    assert (crowd.requests, crowd.peak_in_flight, crowd.in_flight) == (12, 12, 0)


async def test_log_probabilities_sum_to_that_of_the_drawn_path() -> None:
    completion = await ScriptedEngine(WORLD).generate(request())
    assert completion.logprobs.sum() == pytest.approx(2 * np.log(1 / 3) + np.log(0.5), abs=1e-6)


def test_the_likelihood_of_what_a_tree_world_says_is_what_it_was_drawn_with() -> None:
    world = TreeWorld(branching=3, depth=2, success=lambda letters: {"ab": 0.25}.get(letters, 0.5))
    third = -np.log(3)
    assert world.likelihood("?\n\n", "a\n\nb\n\n#### 1") == [
        ("a\n\n", third), ("b\n\n", third), ("#### 1", np.log(0.25))
    ]  # fmt: skip
    assert world.likelihood("?\n\na\n\n", "b\n\n#### 0") == [("b\n\n", third), ("#### 0", np.log(0.75))]


async def test_tree_world_answers_rightly_as_often_as_its_success_says() -> None:
    world = TreeWorld(branching=2, depth=1, success=lambda letters: {"a": 0.2, "b": 0.9}[letters])
    engine = ScriptedEngine(world)
    texts = [(await engine.generate(request(seed=seed))).text for seed in range(2000)]
    for letter, chance in [("a", 0.2), ("b", 0.9)]:
        rewards = [world.is_right(world.problem("p"), text) for text in texts if text.startswith(letter)]
        assert np.mean(rewards) == pytest.approx(chance, abs=0.05)


async def test_a_completion_that_a_publication_overtakes_carries_both_versions_in_order() -> None:
    bursts = 0

    async def publish_on_the_third_burst(seconds: float) -> None:
        nonlocal bursts
        bursts += 1
        if bursts == 3:
            await engine.publish(5, Path("adapter"))

    engine = ScriptedEngine(WORLD, sleep=publish_on_the_third_burst)
    completion = await engine.generate(request())
    assert sorted(set(completion.versions)) == [0, 5]
    assert (np.diff(completion.versions) >= 0).all()
    assert engine.published == [(5, Path("adapter"))]


async def test_latency_is_what_the_injected_sleep_was_asked_for() -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    await ScriptedEngine(WORLD, latency=lambda request: 2.0, sleep=sleep).generate(request())
    assert sum(slept) == 2.0


async def test_a_scripted_failure_fails_that_request_alone() -> None:
    engine = ScriptedEngine(WORLD, failures={1: EngineError("refused")})
    await engine.generate(request())
    with pytest.raises(EngineError, match="refused"):
        await engine.generate(request())
    await engine.generate(request())


async def test_a_dead_engine_fails_what_is_in_flight_and_all_that_follows() -> None:
    engine = ScriptedEngine(WORLD, failures={1: EngineDeadError("gone")})
    results = await asyncio.gather(*(engine.generate(request()) for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [EngineDeadError] * 3
    with pytest.raises(EngineDeadError, match="gone"):
        await engine.publish(1, Path("adapter"))


async def test_a_closed_engine_answers_no_more_and_cancelled_requests_leave_nothing_in_flight() -> None:
    engine = ScriptedEngine(WORLD, latency=lambda request: 3600.0)
    task = asyncio.create_task(engine.generate(request()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.in_flight == 0
    await engine.close()
    with pytest.raises(EngineDeadError, match="closed"):
        await engine.generate(request())
