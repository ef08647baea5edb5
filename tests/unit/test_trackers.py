"""Figures reach every tracker, survive a crash and a resumed run, and a tracker that fails or is slow costs no step."""

import json
import logging
import math
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import WORLD
from tests.killed_run import new_run, prepare
from treeopo.config import TrainConfig
from treeopo.engines.scripted import ScriptedEngine
from treeopo.engines.settings import Adapters, EngineOptions
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.errors import ConfigError
from treeopo.jobs.train import train
from treeopo.run.directory import RunDirectory
from treeopo.trackers import FanOut, JsonLines, RunInfo, RunTrackers, TensorBoard, open_trackers, read_metrics
from treeopo.trackers.base import Guarded, InThread, continued, remember
from treeopo.trackers.opened import TRACKERS, check_trackers

EXAMPLE = Path(__file__).parents[2] / "examples" / "tracker.py"
OPENED: list["Kept"] = []


class Kept:
    """A tracker that keeps what it is given."""

    def __init__(self, run: RunInfo | None = None) -> None:
        self.run = run
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.closed = 0
        OPENED.append(self)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self.rows.append((step, dict(metrics)))

    def close(self) -> None:
        self.closed += 1


class Failing(Kept):
    """... until step 2, and at its end."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        if step >= 2:
            raise ConnectionError("the service\nis down")
        super().write(step, metrics)

    def close(self) -> None:
        raise ConnectionError("still down")


class Unable:
    def __init__(self, run: RunInfo) -> None:
        raise PermissionError("no login")


class Mute:
    def __init__(self, run: RunInfo) -> None:
        pass

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        pass


def opened(path: Path, names: list[str], resume_at: int = 0) -> RunTrackers:
    info = RunInfo(path, "run", {"seed": 0}, resume_at)
    return open_trackers(names, info, path / "metrics.jsonl", path / "evaluations.jsonl", path / "tensorboard")


# Files


def test_a_resumed_run_has_each_step_once_and_loses_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = JsonLines(path, resume_at=0)
    for step in (1, 2, 3):
        first.write(step, {"rollout/reward": step / 10})
    first.close()
    path.write_text(path.read_text() + '{"step": 4, "rew')
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3]
    second = JsonLines(path, resume_at=2)
    second.write(3, {"rollout/reward": 0.9})
    second.close()
    assert [(row["step"], row["rollout/reward"]) for row in read_metrics(path)] == [(1, 0.1), (2, 0.2), (3, 0.9)]


def test_metrics_on_disk_stay_json(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "metrics.jsonl", 0)
    lines.write(1, {"learner/loss": math.nan, "learner/grad_norm": math.inf, "rollout/reward": 0.5})
    lines.close()
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=lambda name: pytest.fail(name)) == {"step": 1, "rollout/reward": 0.5}
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "rollout/reward": 0.5}]


def test_a_run_without_evaluations_has_no_file_of_them(tmp_path: Path) -> None:
    trackers = opened(tmp_path, [])
    trackers.steps.write(1, {"learner/loss": 0.5})
    trackers.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]
    assert read_metrics(tmp_path / "evaluations.jsonl") == []


def test_tensorboard_gets_every_metric(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoard(tmp_path, resume_at=0)
    board.write(1, {"rollout/reward": 0.25, "learner/loss": -1.0})
    board.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == {"rollout/reward", "learner/loss"}
    assert [(event.step, event.value) for event in events.Scalars("rollout/reward")] == [(1, 0.25)]


def test_a_full_disk_under_metrics_jsonl_ends_the_run(tmp_path: Path) -> None:
    trackers = FanOut([JsonLines(tmp_path / "metrics.jsonl", 0), Kept()])
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        trackers.write(1, {"learner/loss": 0.5})
    with pytest.raises(OSError, match="No space left"):  # what it holds still does not fit
        trackers.close()


# Trackers of one run


def test_steps_and_evaluations_go_to_files_of_their_own_and_both_to_every_tracker(tmp_path: Path) -> None:
    OPENED.clear()
    trackers = opened(tmp_path, [f"{__name__}:Kept"])
    trackers.steps.write(1, {"learner/loss": 0.5})
    trackers.evaluations.write(0, {"eval/pass_at_1": 0.25})
    trackers.close()
    (kept,) = OPENED
    assert kept.rows == [(1, {"learner/loss": 0.5}), (0, {"eval/pass_at_1": 0.25})]
    assert kept.closed == 1
    assert kept.run == RunInfo(tmp_path, "run", {"seed": 0}, 0)
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "learner/loss": 0.5}]
    assert read_metrics(tmp_path / "evaluations.jsonl") == [{"step": 0, "eval/pass_at_1": 0.25}]


def test_a_tracker_that_fails_is_dropped_with_one_warning_and_the_others_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    OPENED.clear()
    failing, kept = Failing(), Kept()
    trackers = FanOut([JsonLines(tmp_path / "metrics.jsonl", 0), Guarded("failing", failing), kept])
    with caplog.at_level(logging.WARNING):
        for step in (1, 2, 3):
            trackers.write(step, {"learner/loss": 0.5})
        trackers.close()
    assert [step for step, _ in failing.rows] == [1]
    assert [step for step, _ in kept.rows] == [1, 2, 3]
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    (record,) = caplog.records
    assert record.getMessage() == (
        "tracker failing failed at step 2 (ConnectionError: the service is down); it gets no more figures, "
        "metrics.jsonl has them all"
    )


def test_a_slow_tracker_holds_up_no_step_and_gets_everything_in_the_end() -> None:
    gate = threading.Event()

    class Slow(Kept):
        def write(self, step: int, metrics: Mapping[str, float]) -> None:
            assert gate.wait(60)
            super().write(step, metrics)

    slow = Slow()
    tracker = InThread(slow)
    for step in (1, 2, 3):
        tracker.write(step, {"learner/loss": 0.5})
    assert slow.rows == []  # all three writes returned, and the first has not begun
    gate.set()
    tracker.close()
    assert [step for step, _ in slow.rows] == [1, 2, 3]
    assert slow.closed == 1


def test_a_service_that_hangs_at_the_end_is_left_behind_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    gate = threading.Event()

    class Hanging(Kept):
        def close(self) -> None:
            gate.wait(60)

    tracker = Guarded("hanging", InThread(Hanging(), patience=0.05))
    tracker.write(1, {"learner/loss": 0.5})
    tracker.close()
    gate.set()
    assert "tracker hanging failed at its end (TimeoutError: it has not taken everything" in caplog.text


def test_what_a_write_raises_in_its_thread_is_told_at_the_next(caplog: pytest.LogCaptureFixture) -> None:
    written = threading.Event()

    class Full(Kept):
        def write(self, step: int, metrics: Mapping[str, float]) -> None:
            raise OSError("quota exceeded")

        def close(self) -> None:
            written.set()

    tracker = Guarded("full", InThread(Full()))
    tracker.write(1, {"learner/loss": 0.5})
    assert written.wait(60)
    tracker.write(2, {"learner/loss": 0.5})
    tracker.close()
    assert [record.getMessage().split(";")[0] for record in caplog.records] == [
        "tracker full failed at step 2 (OSError: quota exceeded)"
    ]


def test_where_one_cannot_start_those_before_it_are_closed(tmp_path: Path) -> None:
    OPENED.clear()
    with pytest.raises(ConfigError, match=r"Unable: cannot start \(PermissionError: no login\); mend that, or leave"):
        opened(tmp_path, [f"{__name__}:Kept", f"{__name__}:Unable"])
    assert [kept.closed for kept in OPENED] == [1]


def test_a_run_is_known_to_a_service_by_the_id_that_it_got_there_if_it_goes_on(tmp_path: Path) -> None:
    new, resumed = RunInfo(tmp_path, "run", {}, 0), RunInfo(tmp_path, "run", {}, 3)
    assert continued(resumed, "service") is None
    remember(new, "service", "abc")
    remember(new, "other", "def")
    assert (continued(resumed, "service"), continued(resumed, "other")) == ("abc", "def")
    assert continued(new, "service") is None  # nothing of the earlier one is kept here


# Names of trackers


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (["neptune"], "unknown tracker 'neptune'; use one of wandb, trackio, mlflow, or package.module:Name"),
        (["wandb", "wandb"], "--track wandb is given twice"),
        ([f"{__name__}:Missing"], "has no Missing"),
        ([f"{__name__}:EXAMPLE"], "makes no tracker"),
    ],
)
def test_a_name_that_is_no_tracker_is_one_clear_line(
    names: list[str], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("treeopo.trackers.opened.find_spec", lambda package: type("Spec", (), {"origin": "here"}))
    with pytest.raises(ConfigError, match=complaint) as error:
        check_trackers(names)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_package_is_refused_before_the_run_begins(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("treeopo.trackers.opened.find_spec", lambda package: None)
    run = RunDirectory.create(TrainConfig(output=tmp_path / "run", store=tmp_path / "trees.zarr", trackers=(name,)))
    with pytest.raises(
        ConfigError, match=rf"^--track {name} needs the package {name}; pip install 'treeopo\[{name}\]'"
    ):
        train(run, lambda notice: None, lambda step, metrics: None)
    assert not run.path.exists()


def test_a_folder_of_that_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mlflow").mkdir()
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "mlflow", raising=False)  # where it is installed, another test may have loaded it
    with pytest.raises(ConfigError, match="needs the package mlflow"):
        check_trackers(["mlflow"])


def test_a_tracker_that_lacks_a_method_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Mute lacks close"):
        opened(tmp_path, [f"{__name__}:Mute"])


# A whole run


def test_the_example_is_short_and_a_run_writes_to_it_and_goes_on_when_another_tracker_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    code = EXAMPLE.read_text().split('"""', 2)[2]
    assert sum(bool(line.strip()) for line in code.splitlines()) < 20
    assert code.strip() in (EXAMPLE.parents[1] / "docs" / "metrics.md").read_text()
    monkeypatch.chdir(EXAMPLE.parents[1])
    prepare(tmp_path)
    trackers = ["examples.tracker:RewardTable", f"{__name__}:Failing"]
    run = new_run(tmp_path, "run", steps=4, trackers=trackers)

    async def start_engine(model: str, options: EngineOptions, adapters: Adapters | None) -> ScriptedEngine:
        return ScriptedEngine(WORLD, ModelTokenizer(model))

    assert train(run, lambda notice: None, lambda step, metrics: None, start_engine).complete
    steps = read_metrics(run.metrics)
    table = [line.split(",") for line in (run.path / "rewards.csv").read_text().splitlines()]
    assert [(int(step), float(reward)) for step, reward in table] == [
        (row["step"], row["rollout/reward"]) for row in steps
    ]
    assert len(table) == 4
    assert sum("Failing failed" in record.getMessage() for record in caplog.records) == 1
