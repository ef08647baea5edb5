"""`treeopo train` on a real engine that is killed and frozen under it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.processes import engines, is_alive
from tests.tiny_models import random_qwen2, random_store
from treeopo.trackers.jsonl import read_metrics

pytestmark = pytest.mark.engine

STEPS = 8


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model and a store of random trees in its tokenizer's ids."""
    directory = tmp_path_factory.mktemp("restart")
    random_store(directory / "trees.zarr", random_qwen2(directory / "model"))
    return directory


def train(workplace: Path, run: str, **settings: object) -> subprocess.Popen[str]:
    given = {
        "rollout.max_prompt_tokens": 100,
        "rollout.max_sequence_tokens": 300,
        "checkpoint_every": 1000,
        "engine.restart.backoff_seconds": 0.1,
    } | {name.replace("__", "."): value for name, value in settings.items()}
    command = [sys.executable, "-m", "treeopo_cli.main", "train", "trees.zarr", "--student", "model", "-o", run]
    command += ["--steps", str(STEPS)]
    for name, value in given.items():
        command += ["--set", f"{name}={value}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=workplace)


def wait_until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def signal_engine(process: subprocess.Popen[str], number: signal.Signals, step: int, metrics: Path) -> int:
    """Signal the run's engine as soon as `step` steps are taken and it is at work on the next; its process id."""
    wait_until(lambda: len(read_metrics(metrics)) >= step and len(engines(process.pid)) == 1, process)
    (engine,) = engines(process.pid)
    os.kill(engine, number)
    return engine


@pytest.mark.parametrize("weight_format", ["merged", pytest.param("adapter", marks=pytest.mark.slow)])
def test_a_run_outlives_an_engine_that_is_killed_and_one_that_is_frozen(workplace: Path, weight_format: str) -> None:
    run = workplace / weight_format
    process = train(workplace, weight_format, engine__publish=weight_format, engine__restart__hang_seconds=8)
    killed = signal_engine(process, signal.SIGKILL, 2, run / "metrics.jsonl")
    wait_until(lambda: len(read_metrics(run / "metrics.jsonl")) >= 4, process)
    frozen = signal_engine(process, signal.SIGSTOP, 4, run / "metrics.jsonl")
    _, err = process.communicate(timeout=400)
    assert process.returncode == 0, err[-3000:]
    steps = read_metrics(run / "metrics.jsonl")
    assert [step["step"] for step in steps] == list(range(1, STEPS + 1))
    assert max(step["rollout/staleness_max"] for step in steps) <= 1
    assert steps[-1]["engine/restarts"] >= 2
    assert not is_alive(killed)
    assert not is_alive(frozen)
    assert (run / "adapter" / "adapter_config.json").exists()
    assert not (run / ".policies").exists()


def test_an_engine_that_is_lost_for_good_leaves_every_step_in_a_checkpoint(workplace: Path) -> None:
    run = workplace / "lost"
    process = train(workplace, "lost", engine__restart__max_restarts=0)
    signal_engine(process, signal.SIGKILL, 2, run / "metrics.jsonl")
    _, err = process.communicate(timeout=400)
    assert process.returncode == 1
    message = err.replace("\n", " ")
    assert "failed 1 times in a row" in message
    assert "its log is" in message
    assert "Traceback" not in err
    steps = read_metrics(run / "metrics.jsonl")
    assert [step["step"] for step in steps] == list(range(1, len(steps) + 1))
    assert (run / "checkpoints" / f"step-{len(steps):06d}" / "adapter").is_dir()
