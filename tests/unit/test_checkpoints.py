"""A checkpoint is whole or absent, and a run directory keeps one line a step."""

import json
import os
from pathlib import Path

import pytest

from treeopo.config import TrainConfig
from treeopo.errors import RunError
from treeopo.learner.checkpoints import Checkpoints
from treeopo.metrics import JsonLinesSink, TensorBoardSink, read_metrics
from treeopo.run_directory import RunDirectory


def content(text: str):  # type: ignore[no-untyped-def]
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


def test_a_resumed_run_has_each_step_once_and_loses_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = JsonLinesSink(path, resume_at=0)
    for step in (1, 2, 3):
        first.write(step, {"reward": step / 10})
    first.close()
    path.write_text(path.read_text() + '{"step": 4, "rew')
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3]
    second = JsonLinesSink(path, resume_at=2)
    second.write(3, {"reward": 0.9})
    second.close()
    assert [(row["step"], row["reward"]) for row in read_metrics(path)] == [(1, 0.1), (2, 0.2), (3, 0.9)]


def test_tensorboard_gets_every_metric(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sink = TensorBoardSink(tmp_path, resume_at=0)
    sink.write(1, {"reward": 0.25, "loss": -1.0})
    sink.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == {"reward", "loss"}
    assert [(event.step, event.value) for event in events.Scalars("reward")] == [(1, 0.25)]


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
