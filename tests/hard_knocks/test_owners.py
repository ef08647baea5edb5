"""Two at once: a directory that is written into has one owner, and the second one hears who that is.

Sources: huggingface/trl#3979, vllm-project/vllm#27953, #43206, #43240 (a second start spoils the first one's files).
"""

import errno
import fcntl
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from treeopo_storage import StoreAccessError, StoreMeta, create_store, new_store, open_writer
from treeopo_storage import lock as locks
from treeopo_storage.errors import StoreLockedError

from tests import killed_run
from treeopo.errors import RunError
from treeopo.evaluation.answers import Answers
from treeopo.jobs.train import train
from treeopo.owners import LOCK, owning
from treeopo.run.directory import RunDirectory
from treeopo.trackers.jsonl import read_metrics

META = StoreMeta("0123456789abcdef", "teacher")
HERE = f"by process {os.getpid()} on host {socket.gethostname()}"


def sign(directory: Path, pid: int, host: str, *, age_s: float = 0) -> Path:
    lock = directory / LOCK
    lock.write_text(json.dumps({"pid": pid, "host": host}))
    os.utime(lock, (time.time() - age_s,) * 2)
    return lock


def refused_lock(number: int):
    def flock(fd: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    return flock


def dead_process() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_the_second_owner_of_a_directory_hears_who_the_first_is(tmp_path: Path) -> None:
    with owning(tmp_path / "run"), pytest.raises(RunError, match=rf"run is in use {HERE} \(.*; wait for it or stop it"):
        owning(tmp_path / "run").__enter__()


def test_a_directory_that_nothing_was_put_into_goes_with_its_owner(tmp_path: Path) -> None:
    with owning(tmp_path / "runs" / "new"):
        assert (tmp_path / "runs" / "new").is_dir()
    assert not list(tmp_path.iterdir())
    with owning(tmp_path / "runs"):
        (tmp_path / "runs" / "file").touch()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["file"]


def test_a_dead_owner_is_taken_over_here_and_after_a_minute_of_silence_elsewhere(tmp_path: Path) -> None:
    sign(tmp_path, dead_process(), socket.gethostname())
    with owning(tmp_path):
        pass
    sign(tmp_path, 7, "elsewhere", age_s=locks.STALE_S / 2)
    with pytest.raises(RunError, match=r"in use by process 7 on host elsewhere .* wait for it or stop it"):
        owning(tmp_path).__enter__()
    sign(tmp_path, 7, "elsewhere", age_s=2 * locks.STALE_S)  # a job that was put on another machine goes on by itself
    with owning(tmp_path):
        pass


def test_who_was_taken_over_writes_nothing_more(tmp_path: Path) -> None:
    with owning(tmp_path) as first:
        first.check()
        (tmp_path / LOCK).unlink()
        with owning(tmp_path) as second:
            second.check()
            with pytest.raises(RunError, match="another process has taken it over"):
                first.check()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_the_kernels_locks_the_heartbeat_decides(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", refused_lock(number))
    with owning(tmp_path), pytest.raises(RunError, match=f"in use {HERE}"):
        owning(tmp_path).__enter__()
    sign(tmp_path, dead_process(), socket.gethostname())
    with owning(tmp_path):
        pass
    sign(tmp_path, os.getpid(), socket.gethostname(), age_s=2 * locks.STALE_S)  # a pid that is used again
    with owning(tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_store_whose_file_system_has_no_locks_says_what_to_do(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_store(tmp_path / "a.zarr", META)
    monkeypatch.setattr(fcntl, "flock", refused_lock(number))
    with pytest.raises(StoreAccessError, match=r"a\.zarr: its file system has no locks .*; use a local disk"):
        open_writer(tmp_path / "a.zarr")
    with (
        pytest.raises(StoreAccessError, match=r"b\.zarr: its file system has no locks"),
        new_store(tmp_path / "b.zarr", META),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


def test_a_lock_that_nobody_holds_and_nobody_gets_is_not_blamed_on_an_owner_without_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_store(tmp_path / "a.zarr", META)
    monkeypatch.setattr(fcntl, "flock", refused_lock(errno.EWOULDBLOCK))
    monkeypatch.setattr(locks, "ORPHANS_S", 0.05)
    with pytest.raises(StoreLockedError, match=r"does not say who it is; .* the locks of this file system do not work"):
        open_writer(tmp_path / "a.zarr")


def test_what_a_dead_owner_left_behind_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Children share their parent's lock, and die a moment later."""
    pid = dead_process()
    fd = os.open(sign(tmp_path, pid, socket.gethostname()), os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    monkeypatch.setattr(locks, "ORPHANS_S", 0.05)
    with pytest.raises(RunError, match=f"a process that process {pid} left behind on this host; end it"):
        owning(tmp_path).__enter__()
    monkeypatch.setattr(locks, "ORPHANS_S", 30)
    monkeypatch.setattr(time, "sleep", lambda seconds: os.close(fd))
    with owning(tmp_path):
        pass


def test_a_second_evaluation_into_one_directory_is_refused(tmp_path: Path) -> None:
    with Answers(tmp_path / "out", {}):
        with pytest.raises(RunError, match=f"out is in use {HERE}"):
            Answers(tmp_path / "out", {})
        assert (tmp_path / "out" / "completions.jsonl").exists()
    with Answers(tmp_path / "out", {}):
        pass
    assert not (tmp_path / "out" / LOCK).exists()


def test_a_refused_evaluation_lets_go_of_the_directory(tmp_path: Path) -> None:
    with Answers(tmp_path / "out", {"seed": 0}):
        pass
    for _ in range(2):
        with pytest.raises(RunError, match="other settings"):
            Answers(tmp_path / "out", {"seed": 1})


@pytest.mark.processes
def test_a_second_training_and_a_resume_are_refused_and_the_first_one_ends_as_if_alone(tmp_path: Path) -> None:
    killed_run.prepare(tmp_path)
    first = killed_run.new_run(tmp_path, "run", steps=12)
    late = RunDirectory.create(first.config.model_copy(update={"steps": 3}))  # both looked before either had begun
    context = multiprocessing.get_context("spawn")
    under_way = context.Event()
    child = context.Process(target=killed_run.train, args=(first.path, under_way))
    child.start()
    assert under_way.wait(120)
    for second in (late, RunDirectory.open(first.path)):
        with pytest.raises(RunError, match=f"run is in use by process {child.pid} on host"):
            train(second, lambda notice: None, lambda step, metrics: None)
    child.join()
    assert child.exitcode == 0
    assert [row["step"] for row in read_metrics(first.metrics)] == list(range(1, 13))
    assert RunDirectory.open(first.path).config.steps == 12
    with pytest.raises(RunError, match="holds a run already"):
        train(late, lambda notice: None, lambda step, metrics: None)
