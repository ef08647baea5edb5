"""Who calls the jobs: a notebook, whose event loop runs already, another thread, a terminal that is closed, nohup."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.killed_run import new_run, prepare
from treeopo import tasks
from treeopo.jobs.train import TrainSummary, train
from treeopo.learner.checkpoints import Checkpoints
from treeopo.run.directory import RunDirectory
from treeopo.trackers.jsonl import read_metrics


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("callers")
    prepare(directory)
    return directory


def trained(workplace: Path, name: str) -> TrainSummary:
    run = new_run(workplace, name, method="sft", steps=2)
    return train(run, lambda notice: None, lambda step, metrics: None)


# jupyter/notebook#4312: asyncio.run() cannot be called from a running event loop
def test_a_run_can_be_called_where_an_event_loop_runs_already(workplace: Path) -> None:
    async def cell() -> TrainSummary:
        return trained(workplace, "notebook")

    assert asyncio.run(cell()).complete


def test_a_run_can_be_called_in_a_thread_which_hears_of_no_signals(workplace: Path) -> None:
    found: list[TrainSummary] = []
    thread = threading.Thread(target=lambda: found.append(trained(workplace, "thread")))
    thread.start()
    thread.join()
    assert found[0].complete


@pytest.mark.parametrize("inside", [True, False])
def test_results_and_errors_come_through_with_a_loop_running_or_without(inside: bool) -> None:
    async def fails() -> None:
        await asyncio.sleep(0)
        raise ValueError("no such thing")

    async def answers() -> int:
        await asyncio.sleep(0)
        return 3

    async def cell(work: Callable[[], Any]) -> Any:
        return tasks.run(work())

    def called(work: Callable[[], Any]) -> Any:
        return asyncio.run(cell(work)) if inside else tasks.run(work())

    assert called(answers) == 3
    with pytest.raises(ValueError, match="no such thing"):
        called(fails)


def test_an_interrupted_cell_cancels_its_work_and_waits_until_it_has_cleaned_up() -> None:
    ended: list[str] = []

    async def work() -> None:
        await asyncio.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)  # to the main thread, which waits
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("cleaned up")

    async def cell() -> None:
        tasks.run(work())

    loop = asyncio.new_event_loop()  # not asyncio.run, whose own handler would only cancel the cell
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest-xdist has it ignored
    try:
        with contextlib.closing(loop), pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(cell())
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended == ["cleaned up"]


def started(workplace: Path, name: str, ignored: bool) -> tuple[subprocess.Popen[str], RunDirectory]:
    """A run of many steps in a process of its own, three of them taken; ignored: as nohup starts it."""
    handler = signal.SIG_IGN if ignored else signal.SIG_DFL
    flags = ["--student", workplace / "student", "--method", "sft", "--steps", 100_000, "-o", workplace / name]
    process = subprocess.Popen(
        [sys.executable, "-m", "treeopo_cli.main", *map(str, ["train", workplace / "trees.zarr", *flags])],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGHUP, handler),
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while len(read_metrics(workplace / name / "metrics.jsonl")) < 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process, RunDirectory.open(workplace / name)


@pytest.mark.processes
@pytest.mark.xdist_group("callers")
def test_a_closed_terminal_stops_a_run_with_a_checkpoint(workplace: Path) -> None:
    process, run = started(workplace, "hangup", ignored=False)
    process.send_signal(signal.SIGHUP)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in err) == (0, False), err
    checkpoint = Checkpoints(run.checkpoints, 2).latest()
    assert checkpoint is not None
    assert int(checkpoint.name.removeprefix("step-")) == len(read_metrics(run.metrics))
    assert "--resume" in out


@pytest.mark.processes
@pytest.mark.xdist_group("callers")
def test_a_run_under_nohup_outlives_its_terminal(workplace: Path) -> None:
    process, run = started(workplace, "nohup", ignored=True)
    process.send_signal(signal.SIGHUP)
    steps = len(read_metrics(run.metrics))
    while len(read_metrics(run.metrics)) < steps + 20:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 0
