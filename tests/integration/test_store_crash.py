"""Whatever kills the writer, every committed problem is whole and the next writer goes on."""

import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from treeopo_storage import StoreAccessError, StoreMeta, WriterClosedError
from treeopo_storage import zarr_store as zs
from treeopo_storage.conformance import assert_same_tree, random_tree
from treeopo_storage.verify import verify_store
from treeopo_storage.zarr_store import create_store, open_store, open_writer

pytestmark = pytest.mark.processes

META = StoreMeta("0123456789abcdef", "teacher")


class Killed(BaseException):
    """The process dies here: nothing after this line runs."""


class FailAtStep:
    """Stands in for `Path.write_bytes` and `Path.replace`: call number `at` does half its work and raises `error`."""

    def __init__(self, at: int, error: BaseException, patch: pytest.MonkeyPatch) -> None:
        self.left, self.error = at, error
        self.write_bytes, self.replace = Path.write_bytes, Path.replace
        patch.setattr(Path, "write_bytes", lambda path, data: self.step(path, data) and self.write_bytes(path, data))
        patch.setattr(Path, "replace", lambda path, target: self.step(path, b"") and self.replace(path, target))

    def step(self, path: Path, data: memoryview | bytes) -> bool:
        if self.left == 0:
            if data:
                self.write_bytes(path, bytes(data)[: len(data) // 2])
            raise self.error
        self.left -= 1
        return True


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of three problems, in chunks small enough that an append fills some and starts others."""
    monkeypatch.setattr(zs, "CHUNK_ROWS", {"problem": 2, "node": 16, "token": 64})
    monkeypatch.setattr(zs, "TEXT_CHUNK_BYTES", 256)
    create_store(tmp_path / "base.zarr", META)
    with open_writer(tmp_path / "base.zarr") as writer:
        writer.append([random_tree(f"p{seed}", seed, nodes=6) for seed in range(3)])
    return tmp_path / "base.zarr"


def append_failing_at(base: Path, copy: Path, step: int, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Append two problems to a copy and close it, with the given step failing; False if there is no such step."""
    shutil.copytree(base, copy)
    trees = [random_tree(f"p{seed}", seed, nodes=6) for seed in range(5)]
    writer, committed = open_writer(copy), 3
    with monkeypatch.context() as patch:
        FailAtStep(step, error, patch)
        try:
            writer.append(trees[3:])
            committed = 5
            writer.close()
        except (Killed, StoreAccessError):
            with pytest.raises(WriterClosedError):
                writer.append(trees[3:])
        else:
            return False
    writer.close()
    assert verify_store(copy).problem_ids() == [tree.id for tree in trees[:committed]]
    with open_writer(copy) as again:
        again.append(trees[committed:])
    assert not list(copy.rglob("*.partial"))
    store = verify_store(copy)
    for ours, theirs in zip(store.problems(0, 5), trees, strict=True):
        assert_same_tree(ours, theirs)
    shutil.rmtree(copy)
    return True


@pytest.mark.parametrize("error", [Killed(), OSError(28, "No space left on device")], ids=["killed", "disk full"])
def test_an_append_that_stops_at_any_step_leaves_the_last_commit(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    # Every step of the append is the proof; every twentieth, from another offset each run, is the daily one.
    step = random.randrange(20)
    while append_failing_at(base, tmp_path / f"copy{step}.zarr", step, error, monkeypatch):
        step += 20
    assert step > 40


@pytest.mark.slow
@pytest.mark.parametrize("error", [Killed(), OSError(28, "No space left on device")], ids=["killed", "disk full"])
def test_an_append_that_stops_at_every_step_leaves_the_last_commit(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    step = 0
    while append_failing_at(base, tmp_path / f"copy{step}.zarr", step, error, monkeypatch):
        step += 1
    assert step > 40


WRITE_FOREVER = """
    import sys
    from treeopo_storage.conformance import random_tree
    from treeopo_storage.zarr_store import open_writer

    with open_writer(sys.argv[1]) as writer:
        while True:
            first = writer.problem_count
            writer.append([random_tree(f"p{seed}", seed) for seed in range(first, first + 3)])
            print(writer.problem_count, flush=True)
"""


@pytest.mark.parametrize("kills", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_a_killed_writer_loses_and_repeats_nothing(tmp_path: Path, kills: int) -> None:
    """Start a writer, kill it at a random moment, check the store; `kills` times over one growing store."""
    path, rng = tmp_path / "trees.zarr", random.Random()
    create_store(path, META)
    acknowledged = checked = 0
    for _ in range(kills):
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITE_FOREVER), str(path)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        acknowledged = int(child.stdout.readline() or 0)
        time.sleep(rng.uniform(0, 0.25))
        child.send_signal(signal.SIGKILL)
        acknowledged = max(acknowledged, *(int(line) for line in child.stdout.read().split()), 0)
        child.wait()
        child.stdout.close()
        store = verify_store(path)
        assert store.problem_count >= acknowledged
        assert store.problem_count % 3 == 0
        assert store.problem_ids() == [f"p{seed}" for seed in range(store.problem_count)]
        for seed in range(checked, store.problem_count):
            assert_same_tree(store.problem(seed), random_tree(f"p{seed}", seed))
        checked = max(0, store.problem_count - 3)
    assert acknowledged > kills


FILL_THE_DISK = """
    import os, sys
    from pathlib import Path
    from treeopo_storage import StoreAccessError, StoreMeta
    from treeopo_storage.conformance import assert_same_tree, random_tree
    from treeopo_storage.verify import verify_store
    from treeopo_storage.zarr_store import create_store, open_writer

    disk = Path(sys.argv[1])
    (disk / "ballast").write_bytes(os.urandom(14 << 20))
    create_store(disk / "trees.zarr", StoreMeta("0123456789abcdef", "teacher"))
    committed = 0
    try:
        with open_writer(disk / "trees.zarr") as writer:
            while True:
                writer.append([random_tree(f"p{committed}", committed, nodes=200, step_tokens=300)])
                committed += 1
    except StoreAccessError as error:
        assert "No space left on device" in str(error), error
    assert committed > 3
    assert verify_store(disk / "trees.zarr").problem_count == committed
    (disk / "ballast").unlink()
    with open_writer(disk / "trees.zarr") as writer:
        writer.append([random_tree("after", 7)])
    store = verify_store(disk / "trees.zarr")
    assert store.problem_ids() == [*(f"p{i}" for i in range(committed)), "after"]
    for i in range(committed):
        assert_same_tree(store.problem(i), random_tree(f"p{i}", i, nodes=200, step_tokens=300))
"""

READ_ONLY = """
    import subprocess, sys
    from pathlib import Path
    from treeopo_storage import StoreAccessError, StoreMeta
    from treeopo_storage.conformance import random_tree
    from treeopo_storage.zarr_store import create_store, open_store, open_writer

    disk = Path(sys.argv[1])
    create_store(disk / "trees.zarr", StoreMeta("0123456789abcdef", "teacher"))
    with open_writer(disk / "trees.zarr") as writer:
        writer.append([random_tree("p", 1)])
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert open_store(disk / "trees.zarr").problem_ids() == ["p"]
    for write in (lambda: open_writer(disk / "trees.zarr"), lambda: create_store(disk / "new.zarr", StoreMeta("", ""))):
        try:
            write()
        except StoreAccessError as error:
            assert "Read-only file system" in str(error), error
        else:
            raise AssertionError("wrote to a read-only disk")
"""


@pytest.mark.parametrize("script", [FILL_THE_DISK, READ_ONLY], ids=["full", "read-only"])
def test_a_disk_that_refuses_writes_costs_no_committed_problem(script: str, tmp_path: Path) -> None:
    in_own_namespace = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    mount = f"mount -t tmpfs -o size=24m none {tmp_path}"
    if shutil.which("unshare") is None or subprocess.run([*in_own_namespace, mount], check=False).returncode:
        pytest.skip("this system does not let us mount a small tmpfs")
    (tmp_path.parent / "script.py").write_text(textwrap.dedent(script))
    run = f"{mount} && exec {sys.executable} {tmp_path.parent / 'script.py'} {tmp_path}"
    done = subprocess.run([*in_own_namespace, run], capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr


def test_reading_while_writing_always_sees_whole_problems(tmp_path: Path) -> None:
    path = tmp_path / "trees.zarr"
    create_store(path, META)
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITE_FOREVER), str(path)], stdout=subprocess.DEVNULL
    )
    try:
        store = open_store(path)
        while store.problem_count < 30:
            if store.refresh():
                for seed in {0, store.problem_count // 2, store.problem_count - 1}:
                    assert_same_tree(store.problem(seed), random_tree(f"p{seed}", seed))
                assert len(store.structure().parent) == store.node_count
            assert child.poll() is None
    finally:
        child.kill()
        child.wait()
