"""A checkpoint is whole or absent, and a run directory keeps one line a step."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from treeopo.config import TrainConfig
from treeopo.errors import RunError
from treeopo.learner.checkpoints import Checkpoints
from treeopo.run.directory import RunDirectory


def content(text: str) -> Any:
    def write(directory: Path) -> None:
        (directory / "adapter").mkdir()
        (directory / "adapter" / "weights").write_text(text)

    return write


def test_the_newest_checkpoint_is_found_and_only_so_many_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c", kept=2)
    assert checkpoints.latest() is None
    for version in (5, 10, 100):
        checkpoints.save(version, content(str(version)))
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["step-000010", "step-000100"]
    latest = checkpoints.latest()
    assert latest is not None
    assert (latest / "adapter" / "weights").read_text() == "100"


def test_a_failed_write_leaves_the_earlier_checkpoint_and_no_debris(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, kept=1)
    checkpoints.save(1, content("one"))

    def fail(directory: Path) -> None:
        (directory / "half").write_text("x")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        checkpoints.save(2, fail)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_what_a_killed_writer_left_behind_is_never_taken_for_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / ".partial-123").mkdir()
    (tmp_path / ".partial-123" / "adapter").mkdir()
    assert Checkpoints(tmp_path, kept=1).latest() is None


def test_a_checkpoint_saved_again_replaces_the_first(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, kept=2)
    checkpoints.save(3, content("first"))
    assert (checkpoints.save(3, content("second")) / "adapter" / "weights").read_text() == "second"


def config(path: Path) -> TrainConfig:
    return TrainConfig(store=Path("trees.zarr"), output=path, seed=4)


def test_a_run_is_recorded_with_its_settings_and_versions_and_opened_again(tmp_path: Path) -> None:
    run = RunDirectory.create(config(tmp_path / "run"))
    assert not (tmp_path / "run").exists()  # nothing is written before the run begins
    run.begin()
    assert RunDirectory.open(tmp_path / "run").config == run.config
    assert "torch" in json.loads((tmp_path / "run" / "config.json").read_text())["versions"]


def test_a_second_run_in_the_same_place_is_refused_and_pointed_to_resume(tmp_path: Path) -> None:
    first = RunDirectory.create(config(tmp_path))
    first.begin()
    RunDirectory.create(config(tmp_path))  # no step was taken yet: other settings may be tried
    first.metrics.write_text('{"step": 1}\n')
    with pytest.raises(RunError, match="continue it with --resume"):
        RunDirectory.create(config(tmp_path))


def test_opening_what_is_no_run_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run there"):
        RunDirectory.open(tmp_path)
    (tmp_path / "config.json").write_text('{"config": {"steps": "many"}}')
    with pytest.raises(RunError, match="not the settings of a run"):
        RunDirectory.open(tmp_path)


def test_a_moved_run_is_opened_where_it_is_now(tmp_path: Path) -> None:
    RunDirectory.create(config(tmp_path / "old")).begin()
    os.rename(tmp_path / "old", tmp_path / "new")
    assert RunDirectory.open(tmp_path / "new").adapter == tmp_path / "new" / "adapter"
