"""One writer, and a dead one does not stand in the way."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from treeopo_storage import StoreLockedError, StoreMeta, create_store, open_store, open_writer
from treeopo_storage import lock as locks
from treeopo_storage.conformance import random_tree


@pytest.fixture
def path(tmp_path: Path) -> Path:
    create_store(tmp_path / "trees.zarr", StoreMeta("0123456789abcdef", "teacher"))
    return tmp_path / "trees.zarr"


def write_lock(path: Path, pid: int, host: str, *, age_s: float = 0) -> Path:
    lock = path.with_name("trees.zarr.lock")
    lock.write_text(json.dumps({"pid": pid, "host": host}))
    os.utime(lock, (time.time() - age_s,) * 2)
    return lock


def test_a_second_writer_hears_who_the_first_is(path: Path) -> None:
    owner = f"is being written by process {os.getpid()} on host {socket.gethostname()} "
    with open_writer(path), pytest.raises(StoreLockedError, match=rf"{owner}\(heartbeat \d+ s ago\); wait for it"):
        open_writer(path)


def test_a_second_process_is_refused_too(path: Path) -> None:
    code = f"from treeopo_storage import open_writer; open_writer({str(path)!r})"
    with open_writer(path):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"StoreLockedError: {path} is being written by process {os.getpid()}" in done.stderr


def test_the_lock_goes_with_its_writer(path: Path) -> None:
    lock = path.with_name("trees.zarr.lock")
    with open_writer(path):
        assert json.loads(lock.read_text()) == {"pid": os.getpid(), "host": socket.gethostname()}
    assert not lock.exists()


def test_a_dead_writer_on_this_host_is_taken_over(path: Path) -> None:
    write_lock(path, 1, socket.gethostname())  # process 1 lives, but holds no lock: pids are reused, locks are not
    with open_writer(path) as writer:
        writer.append([random_tree("p", 1)])
    assert open_store(path).problem_count == 1


def test_half_a_lock_file_is_taken_over(path: Path) -> None:
    path.with_name("trees.zarr.lock").write_text('{"pid": ')
    with open_writer(path) as writer:
        writer.append([random_tree("p", 1)])
    assert open_store(path).problem_count == 1
    assert not path.with_name("trees.zarr.lock").exists()


def test_a_live_writer_on_another_host_is_respected(path: Path) -> None:
    write_lock(path, 7, "elsewhere", age_s=locks.STALE_S / 2)
    with pytest.raises(StoreLockedError, match=r"process 7 on host elsewhere .* wait for it or stop it"):
        open_writer(path)


def test_a_silent_writer_on_another_host_can_be_removed_by_hand(path: Path) -> None:
    lock = write_lock(path, 7, "elsewhere", age_s=10 * locks.STALE_S)
    with pytest.raises(StoreLockedError, match=f"if that process is dead, delete {lock}"):
        open_writer(path)
    lock.unlink()
    open_writer(path).close()


def test_the_heart_beats_while_the_writer_lives(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.01)
    lock = path.with_name("trees.zarr.lock")
    with open_writer(path):
        os.utime(lock, (0, 0))
        deadline = time.monotonic() + 30
        while lock.stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_writer_that_lost_its_lock_writes_nothing_more(path: Path) -> None:
    with open_writer(path) as first:
        path.with_name("trees.zarr.lock").unlink()
        with open_writer(path) as second:
            second.append([random_tree("p", 1)])
            with pytest.raises(StoreLockedError, match="was taken from this writer; nothing was written"):
                first.append([random_tree("q", 2)])
            first.close()
            assert path.with_name("trees.zarr.lock").exists()  # it is the second's now
    assert open_store(path).problem_ids() == ["p"]
