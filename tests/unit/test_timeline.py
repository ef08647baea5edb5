"""A timeline is JSON that trace viewers read, shows what overlapped, and survives kills and resumption."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from treeopo.engines.simulated_time import run_simulated
from treeopo.records import TrainBatch
from treeopo.rollout.meter import EngineMeter
from treeopo.rollout.pipeline import Metrics, Pipeline, Stages
from treeopo.timeline import Timeline, read_timeline


def spans(events: list[dict[str, Any]], track: str) -> list[tuple[str, float, float]]:
    """(name, begin, end) in seconds of the spans on one track, of the newest process that has it."""
    named = [event for event in events if event["name"] == "thread_name" and event["args"]["name"] == track]
    where = (named[-1]["pid"], named[-1]["tid"])
    of_track = [event for event in events if event["ph"] == "X" and (event["pid"], event["tid"]) == where]
    return [(event["name"], event["ts"] / 1e6, (event["ts"] + event["dur"]) / 1e6) for event in of_track]


async def train(path: Path, *, close: bool = True) -> None:
    """Three batches of 4 s; learning takes 2 s and publishing 0.5 s."""
    timeline = Timeline.open(path, "from step 0")
    meter = EngineMeter(slots=4, timeline=timeline)

    async def make_batch(number: int) -> TrainBatch:
        meter.change(+1)
        await asyncio.sleep(4)
        meter.change(-1)
        return TrainBatch(number, (), {})

    async def learn(batch: TrainBatch) -> Metrics:
        await asyncio.sleep(2)
        return {}

    async def publish(version: int) -> None:
        await asyncio.sleep(0.5)

    async def on_step(version: int, metrics: Metrics) -> bool:
        return True

    await Pipeline(Stages(make_batch, learn, publish), 1, meter, timeline).run(0, 3, on_step)
    if close:
        timeline.close()


def test_learner_and_batches_are_shown_where_they_overlap(tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    run_simulated(train(path))
    events = json.loads(path.read_text())
    assert spans(events, "learner") == [
        ("wait", 0, 4), ("learn 0", 4, 6), ("publish 1", 6, 6.5),
        ("wait", 6.5, 6.5), ("learn 1", 6.5, 8.5), ("publish 2", 8.5, 9),
        ("wait", 9, 10.5), ("learn 2", 10.5, 12.5), ("publish 3", 12.5, 13),
    ]  # fmt: skip
    assert spans(events, "batches 0") == [
        ("batch 0", 0, 4), ("batch 0 in queue", 4, 4), ("batch 2", 6.5, 10.5), ("batch 2 in queue", 10.5, 10.5),
    ]  # fmt: skip
    assert spans(events, "batches 1") == [("batch 1", 0, 4), ("batch 1 in queue", 4, 6.5)]
    counts = [(event["ts"] / 1e6, *event["args"].values()) for event in events if event["ph"] == "C"]
    assert [count for at, count in counts] == [1, 2, 1, 0, 1, 0]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # as a kill leaves it
def test_a_killed_run_leaves_what_viewers_read_and_what_a_resumed_one_goes_on_from(tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    run_simulated(train(path, close=False))
    assert json.loads(path.read_text() + "]")
    before = read_timeline(path)
    with path.open("a") as file:
        file.write(',\n{"name": "learn 3", "ph"')  # torn by a full disk
    run_simulated(train(path))
    events = json.loads(path.read_text())
    assert events[: len(before)] == before
    assert {event["pid"] for event in events} == {1, 2}
    assert spans(events, "learner")[0] == ("wait", 13, 17)


def test_a_counter_that_changes_fast_is_thinned_out_but_never_ends_on_an_old_value(tmp_path: Path) -> None:
    async def burst() -> None:
        timeline = Timeline.open(tmp_path / "t.json", "burst")
        for value in range(100):
            timeline.count("requests", value)
            await asyncio.sleep(0.001)
        await asyncio.sleep(1)
        timeline.count("requests", 7)
        timeline.close()

    run_simulated(burst())
    counts = [(event["ts"] / 1e6, event["args"]["requests"]) for event in read_timeline(tmp_path / "t.json")[1:]]
    assert len(counts) <= 6
    assert counts[-2] == (pytest.approx(0.099), 99)
    assert counts[-1] == (pytest.approx(1.1), 7)


async def test_a_span_is_written_though_its_block_fails(tmp_path: Path) -> None:
    timeline = Timeline.open(tmp_path / "t.json", "failing")
    with pytest.raises(ArithmeticError), timeline.span("learner", "learn 0"):
        raise ArithmeticError
    timeline.close()
    assert [event["name"] for event in json.loads((tmp_path / "t.json").read_text())][-1] == "learn 0"


async def test_without_a_file_spans_are_timed_and_nothing_is_kept() -> None:
    timeline = Timeline()
    with timeline.span("learner", "learn") as span:
        await asyncio.sleep(0.01)
    timeline.count("requests", 1)
    timeline.close()
    assert span.seconds > 0
