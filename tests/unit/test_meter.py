"""The metrics that name the idle side: exact seconds, in simulated time, where each is known by hand."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from treeopo.engines.scripted import CharTokenizer, ScriptedEngine, TreeWorld
from treeopo.engines.simulated_time import run_simulated
from treeopo.records import Completion, FinishReason, Prompt, Request, Rollout, TrainBatch
from treeopo.rollout.meter import EngineMeter, Idle, Metered
from treeopo.rollout.pipeline import Metrics, Pipeline, Stages
from treeopo.rollout.staleness import staleness_metrics

WORLD = TreeWorld(branching=2, depth=2, success=lambda letters: 0.5)
PROMPT = CharTokenizer().encode(WORLD.question)
ROLLOUT, LEARN, PUBLISH = 4.0, 2.0, 0.5
BATCH = 8
STEPS = 3
PARTS = ("rollout/staleness", "rollout/staleness_in_flight", "rollout/staleness_in_queue")


def steps(max_staleness: int, slots: int) -> list[Metrics]:
    """The metrics of three steps: 8 requests of 4 s a batch, 2 s to learn and 0.5 s to publish."""
    seen: list[Metrics] = []

    async def run() -> None:
        engine = ScriptedEngine(WORLD, latency=lambda request: ROLLOUT)
        meter = EngineMeter(slots)
        metered = Metered(engine, meter)

        async def make_batch(number: int) -> TrainBatch:
            requests = [Request(PROMPT, 100, seed) for seed in range(BATCH)]
            completions = await asyncio.gather(*map(metered.generate, requests))
            return TrainBatch(number, (), {"tokens": float(sum(len(each.token_ids) for each in completions))})

        async def learn(batch: TrainBatch) -> Metrics:
            await asyncio.sleep(LEARN)
            return {"learner/tokens": 600.0}

        async def publish(version: int) -> None:
            await asyncio.sleep(PUBLISH)
            await engine.publish(version, Path("unused"))

        async def on_step(version: int, metrics: Metrics) -> bool:
            seen.append(metrics)
            return True

        await Pipeline(Stages(make_batch, learn, publish), max_staleness, meter).run(0, STEPS, on_step)
        assert meter.in_flight == 0

    run_simulated(run())
    return seen


def column(rows: list[Metrics], name: str) -> list[float]:
    return [row[name] for row in rows]


def test_a_synchronous_engine_idles_while_the_learner_learns_and_publishes() -> None:
    rows = steps(max_staleness=0, slots=BATCH)
    assert column(rows, "pipeline/seconds_waiting") == [4, 4, 4]
    assert column(rows, "pipeline/seconds_learning") == [2, 2, 2]
    assert column(rows, "pipeline/seconds_publishing") == [0.5, 0.5, 0.5]
    assert column(rows, "pipeline/seconds_step") == [6.5, 6.5, 6.5]
    assert column(rows, "engine/seconds_starved") == [2, 2, 0]
    assert column(rows, "engine/seconds_publishing") == [0.5, 0.5, 0]
    assert column(rows, "engine/seconds_draining") == [0, 0, 2.5]  # after the last batch nothing is left to start
    assert column(rows, "engine/seconds_evaluating") == [0, 0, 0]
    assert column(rows, "engine/occupancy") == pytest.approx([4 / 6.5] * 3)


def test_one_version_of_staleness_moves_the_wait_from_the_learner_to_where_it_belongs() -> None:
    """0 s: batches 0 and 1. 4 s: both done, learn 0. 6.5 s: batch 2, the last; learn 1. 9 s: wait. 10.5 s: learn 2."""
    rows = steps(max_staleness=1, slots=2 * BATCH)
    assert column(rows, "pipeline/seconds_waiting") == [4, 0, 1.5]
    assert column(rows, "pipeline/seconds_step") == [6.5, 2.5, 4]
    assert column(rows, "engine/seconds_starved") == [2, 0, 0]
    assert column(rows, "engine/seconds_publishing") == [0.5, 0, 0]
    assert column(rows, "engine/seconds_draining") == [0, 2.5, 4]
    assert column(rows, "engine/occupancy") == pytest.approx([4 / 6.5, 0.5, 0.5 * 1.5 / 4])


def test_an_engine_with_fewer_slots_than_requests_is_never_called_idle_while_they_last() -> None:
    rows = steps(max_staleness=1, slots=BATCH)
    assert column(rows, "engine/seconds_starved") == [2, 0, 0]
    assert column(rows, "engine/seconds_draining") == [0, 0, 2.5]
    assert column(rows, "engine/occupancy") == pytest.approx([4 / 6.5, 1, 1.5 / 4])


def test_tokens_per_second_are_over_the_whole_step() -> None:
    rows = steps(max_staleness=0, slots=BATCH)
    assert column(rows, "engine/tokens_per_second") == pytest.approx([row["tokens"] / 6.5 for row in rows])
    assert column(rows, "learner/tokens_per_second") == pytest.approx([600 / 6.5] * 3)


def test_of_several_reasons_the_one_that_explains_most_is_named() -> None:
    async def run() -> dict[str, float]:
        meter = EngineMeter(slots=2)
        with meter.because(Idle.PUBLISHING):
            await asyncio.sleep(1)
            with meter.because(Idle.EVALUATING):
                meter.change(+1)
                await asyncio.sleep(2)
                meter.change(+1)
                await asyncio.sleep(4)  # both slots are busy
                meter.change(-2)
            await asyncio.sleep(8)
        await asyncio.sleep(16)
        return meter.take()

    taken = run_simulated(run())
    seconds = {reason: taken[f"engine/seconds_{reason}"] for reason in Idle}
    assert seconds == {"publishing": 9, "evaluating": 2, "starved": 16, "draining": 0}
    assert taken["engine/occupancy"] == pytest.approx((2 * 0.5 + 4) / 31)


def test_a_cancelled_request_is_no_longer_in_flight() -> None:
    async def run() -> int:
        meter = EngineMeter()
        engine = Metered(ScriptedEngine(WORLD, latency=lambda request: 3600), meter)
        task = asyncio.create_task(engine.generate(Request(PROMPT, 100, seed=0)))
        await asyncio.sleep(1)
        assert meter.in_flight == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return meter.in_flight

    assert run_simulated(run()) == 0


def rollout(versions: list[int], served: int) -> Rollout:
    tokens = np.zeros(len(versions), np.int32)
    logprobs = tokens.astype(np.float32)
    completion = Completion(tokens, logprobs, np.array(versions, np.int32), "", FinishReason.STOP)
    return Rollout(Prompt(0, tokens, 0, len(tokens), True), completion, 0.0, served, 0)


def test_staleness_is_split_into_what_came_in_flight_and_what_came_in_the_queue() -> None:
    """Batch 5. One completion spans versions 3 and 4 and ends under 4; one was sampled by 5 and is fresh."""
    metrics = staleness_metrics(5, [rollout([3, 3, 4, 4], served=4), rollout([5, 5], served=5)], max_staleness=3)
    assert metrics["rollout/staleness_mean"] == pytest.approx(6 / 6)
    assert metrics["rollout/staleness_max"] == 2
    assert metrics["rollout/staleness_in_flight_mean"] == pytest.approx(2 / 6)
    assert metrics["rollout/staleness_in_queue_mean"] == pytest.approx(4 / 6)
    shares = {name: [metrics[f"{name}_share_{age}"] for age in range(4)] for name in PARTS}
    assert shares["rollout/staleness"] == pytest.approx([2 / 6, 2 / 6, 2 / 6, 0])
    assert shares["rollout/staleness_in_flight"] == pytest.approx([4 / 6, 2 / 6, 0, 0])
    assert shares["rollout/staleness_in_queue"] == pytest.approx([2 / 6, 4 / 6, 0, 0])


def test_an_adapter_that_stays_with_its_request_grows_old_in_flight_too() -> None:
    """Versioned adapters finish on the version they began with, while a newer one serves already."""
    metrics = staleness_metrics(7, [rollout([6, 6], served=7)], max_staleness=1)
    assert (metrics["rollout/staleness_in_flight_mean"], metrics["rollout/staleness_in_queue_mean"]) == (1, 0)
