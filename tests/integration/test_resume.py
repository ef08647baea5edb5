"""A run that is killed and resumed ends with the very bits of the run that was not.

Compared are the adapter's bytes, and every metric of every step but those of the clock and of memory, which no run
repeats (seconds, rates, occupancy, peaks). With eta >= 1 staleness is left out too: a batch that was in flight when the
process died is sampled again by the version that is resumed from, which may be newer; the engine's script then says the
same under every version, so everything that is learned must still be equal. With eta = 0 the script changes with the
version, and staleness is compared as well. So are the rollouts on disk: each step's once, and the same.
"""

import json
import multiprocessing
import random
import signal
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
from pyarrow.parquet import read_table  # type: ignore[import-untyped]

from tests import killed_run
from treeopo.run.directory import RunDirectory
from treeopo.timeline import read_timeline
from treeopo.trackers.jsonl import read_metrics

pytestmark = pytest.mark.processes

PRELOADED = ["tests.killed_run", "treeopo.learner.thread", "torch.utils.tensorboard", "peft"]
NEVER_EQUAL = ("seconds", "per_second", "peak_mib", "engine/")


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Children of a process that has imported everything, so that a start takes a fraction of a second."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("resume")
    killed_run.prepare(directory)
    return directory


def finish(processes: ForkServerContext, run: RunDirectory) -> None:
    under_way = processes.Event()
    child = processes.Process(target=killed_run.train, args=(run.path, under_way))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert run.is_complete


def kill_at_random(processes: ForkServerContext, run: RunDirectory, kills: int, chance: random.Random) -> None:
    """Kill so many processes of the run, one in four while it loads, the others up to 0.4 s into its steps."""
    for _ in range(kills):
        under_way = processes.Event()
        child = processes.Process(target=killed_run.train, args=(run.path, under_way))
        child.start()
        if chance.random() < 0.75:
            assert under_way.wait(120)
        time.sleep(chance.random() * 0.4)
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL, "the run ended before it was killed; give it more steps"


def learned(run: RunDirectory) -> list[dict[str, Any]]:
    left_out = NEVER_EQUAL + (("staleness",) if run.config.rollout.max_staleness else ())
    return [
        {name: value for name, value in step.items() if not any(part in name for part in left_out)}
        for step in read_metrics(run.metrics)
    ]


def kept(run: RunDirectory) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_table(run.rollouts).to_pylist()
    left_out = {"versions"} if run.config.rollout.max_staleness else set()
    return [{name: value for name, value in row.items() if name not in left_out} for row in rows]


def assert_killed_equals_whole(
    processes: ForkServerContext, workplace: Path, *, kills: int, seed: int, **settings: Any
) -> None:
    steps, name = settings["steps"], "-".join(map(str, (*settings.values(), seed)))
    whole = killed_run.new_run(workplace, f"whole-{name}", **settings)
    finish(processes, whole)
    killed = killed_run.new_run(workplace, f"killed-{name}", **settings)
    kill_at_random(processes, killed, kills, random.Random(seed))
    finish(processes, killed)
    assert learned(killed) == learned(whole)
    assert kept(killed) == kept(whole)
    assert {row["step"] for row in kept(whole)} == set(range(max(1, steps - 99), steps + 1))
    assert any(step["learner/grad_norm"] > 0 for step in learned(whole))
    weights = "adapter_model.safetensors"
    assert (killed.adapter / weights).read_bytes() == (whole.adapter / weights).read_bytes()
    assert {path.name for path in killed.path.iterdir()} == {path.name for path in whole.path.iterdir()}
    assert {path.name for path in killed.checkpoints.iterdir()} == {path.name for path in whole.checkpoints.iterdir()}
    assert max(event["pid"] for event in read_timeline(killed.timeline)) > 1
    assert json.loads(killed.timeline.read_text())


# Where groups start, what their rewards are compared with and which groups are learned from: all of it by the outcomes.
REMEMBERING = {
    "rollout.sampling": "success",
    "rollout.no_signal": "redraw",
    "advantage.method": "posterior",
    "advantage.scope": "history",
}


@pytest.mark.parametrize(
    "settings", [{"rollout.max_staleness": 0}, {"rollout.max_staleness": 1, **REMEMBERING}], ids=str
)
def test_a_run_killed_three_times_and_resumed_ends_bit_identical(
    processes: ForkServerContext, workplace: Path, settings: dict[str, Any]
) -> None:
    assert_killed_equals_whole(processes, workplace, steps=30, kills=3, seed=0, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, REMEMBERING], ids=["forgetting", "remembering"])
@pytest.mark.parametrize("staleness", [0, 1, 4])
def test_a_run_killed_at_twenty_random_instants_and_resumed_ends_bit_identical(
    processes: ForkServerContext, workplace: Path, staleness: int, settings: dict[str, Any]
) -> None:
    settings = {"rollout.max_staleness": staleness, **settings}
    assert_killed_equals_whole(processes, workplace, steps=120, kills=20, seed=1, **settings)
