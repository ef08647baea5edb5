"""Weights & Biases, trackio and MLflow: the real packages, offline; what they wrote is read back from their files."""

import json
import math
import os
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from treeopo.errors import ConfigError
from treeopo.trackers import RunInfo, RunTrackers, open_trackers

pytestmark = pytest.mark.processes

CONFIG = {"seed": 4, "learner": {"optimizer": {"learning_rate": 3e-5}}, "store": None, "trackers": ["wandb"]}
WRITTEN = [  # an evaluation of version 0 ends after step 1
    (1, {"learner/loss": -1.0, "rollout/reward": 0.25}),
    (0, {"eval/pass_at_1": 0.5}),
    (2, {"learner/loss": -2.0, "rollout/reward": 0.5}),
    (3, {"learner/loss": math.nan, "rollout/reward": 0.75}),
]
AGAIN = [(3, {"learner/loss": -3.0, "rollout/reward": 1.0})]


def opened(path: Path, name: str, resume_at: int) -> RunTrackers:
    info = RunInfo(path, "my-run", CONFIG, resume_at)
    return open_trackers([name], info, path / "metrics.jsonl", path / "evaluations.jsonl", path / "tensorboard")


def track(path: Path, name: str) -> None:
    """A run of three steps, the last of them after its newest checkpoint; then the run that resumes from that."""
    for resume_at, rows in ((0, WRITTEN), (2, AGAIN)):
        trackers = opened(path, name, resume_at)
        for step, metrics in rows:
            sink = trackers.evaluations if "eval/pass_at_1" in metrics else trackers.steps
            sink.write(step, metrics)
        trackers.close()


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)


# Weights & Biases


@pytest.fixture
def wandb_offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """... and on leaving without the process that it keeps, and without what it remembers of the environment."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield
    wandb.teardown()


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: a header of 7 bytes, then blocks of 32 KiB as in LevelDB's log."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, payload = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 2**15 - at % 2**15
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        payload += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(payload)
            yield record
            payload = b""


def wandb_history(path: Path) -> list[dict[str, Any]]:
    rows = []
    for record in wandb_records(path):
        if record.WhichOneof("record_type") == "history":
            items = {("/".join(item.nested_key) or item.key): item.value_json for item in record.history.item}
            rows.append({name: json.loads(value) for name, value in items.items() if not name.startswith("_")})
    return rows


def test_wandb_gets_every_figure_at_its_step_and_a_resumed_run_is_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    track(tmp_path, "wandb")
    first, second = sorted(
        (tmp_path / "wandb").glob("offline-run-*/run-*.wandb"), key=lambda file: file.stat().st_mtime
    )
    run_id = json.loads((tmp_path / "trackers.json").read_text())["wandb"]
    assert {first.name, second.name} == {f"run-{run_id}.wandb"}
    expected = [{"step": step, **metrics} for step, metrics in WRITTEN]
    found = wandb_history(first)
    assert found.pop() == pytest.approx(expected.pop(), nan_ok=True)
    assert found == expected
    assert wandb_history(second) == [{"step": step, **metrics} for step, metrics in AGAIN]
    (run,) = [record.run for record in wandb_records(first) if record.WhichOneof("record_type") == "run"]
    settings = {entry.key: json.loads(entry.value_json) for entry in run.config.update}
    assert (run.project, run.display_name, run.run_id) == ("treeopo", "my-run", run_id)
    assert {name: settings[name] for name in CONFIG} == CONFIG
    metrics = [record.metric for record in wandb_records(first) if record.WhichOneof("record_type") == "metric"]
    assert any(metric.step_metric == "step" for metric in metrics)  # charts are drawn over the run's steps


OPEN = """
import sys
from pathlib import Path
from treeopo.errors import ConfigError
from treeopo.trackers import RunInfo, open_trackers

path = Path(sys.argv[1])
try:
    open_trackers(["wandb"], RunInfo(path, "my-run", {}), path / "m.jsonl", path / "e.jsonl", path / "tensorboard")
except ConfigError as error:
    print(error)
"""


def test_wandb_without_a_login_is_one_clear_line_before_the_first_step(tmp_path: Path) -> None:
    """In a process of its own: wandb reads its mode once."""
    pytest.importorskip("wandb")
    server = {"WANDB_MODE": "online", "WANDB_BASE_URL": "http://127.0.0.1:9"}
    nobody = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "none")}
    command = [sys.executable, "-c", OPEN, str(tmp_path)]
    done = subprocess.run(command, env=os.environ | server | nobody, stdin=subprocess.DEVNULL, capture_output=True)
    assert done.stdout.decode().splitlines() == [
        "tracker wandb: cannot start (UsageError: No API key configured. Use `wandb login` to log in.); mend that, or "
        "leave --track wandb out"
    ]


# trackio


TRACK = """
import sys
from pathlib import Path
from tests.unit.test_tracker_services import track

track(Path(sys.argv[1]), "trackio")
"""


def test_trackio_gets_every_figure_at_its_step_and_a_resumed_run_is_the_same_run(tmp_path: Path) -> None:
    """In a process of its own: trackio reads its directory as it is imported, and other packages import it."""
    pytest.importorskip("trackio")
    directory, root = tmp_path / "trackio", Path(__file__).parents[2]
    command = [sys.executable, "-c", TRACK, str(tmp_path)]
    subprocess.run(command, env=os.environ | {"TRACKIO_DIR": str(directory)}, cwd=root, check=True, capture_output=True)
    name = json.loads((tmp_path / "trackers.json").read_text())["trackio"]
    assert name.startswith("my-run-")
    with sqlite3.connect(directory / "treeopo.db") as database:
        rows = database.execute("SELECT step, metrics FROM metrics WHERE run_name = ? ORDER BY id", (name,)).fetchall()
        configs = database.execute("SELECT config FROM configs WHERE run_name = ?", (name,)).fetchall()
    found = [(step, json.loads(metrics)) for step, metrics in rows]
    assert [step for step, _ in found] == [step for step, _ in WRITTEN + AGAIN]
    for (_, metrics), (_, expected) in zip(found, WRITTEN + AGAIN, strict=True):
        assert {key: float(value) for key, value in metrics.items()} == pytest.approx(expected, nan_ok=True)
    assert {key: json.loads(configs[0][0])[key] for key in CONFIG} == CONFIG


# MLflow


def mlflow_history(client: Any, run_id: str, name: str) -> list[tuple[int, float]]:
    history = sorted(client.get_metric_history(run_id, name), key=lambda metric: metric.timestamp)
    return [(metric.step, metric.value) for metric in history]


@pytest.fixture
def mlflow_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Over a store of files, which mlflow-skinny has too."""
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("DO_NOT_TRACK", "true")
    from mlflow.tracking import MlflowClient

    return MlflowClient((tmp_path / "mlruns").as_uri())


def test_mlflow_gets_every_figure_at_its_step_and_a_resumed_run_is_the_same_run(
    tmp_path: Path, mlflow_client: Any
) -> None:
    track(tmp_path, "mlflow")
    experiment = mlflow_client.get_experiment_by_name("treeopo")
    (run,) = mlflow_client.search_runs([experiment.experiment_id])
    assert run.info.run_id == json.loads((tmp_path / "trackers.json").read_text())["mlflow"]
    assert (run.info.run_name, run.info.status) == ("my-run", "FINISHED")
    for name in ("rollout/reward", "eval/pass_at_1"):
        expected = [(step, row[name]) for step, row in WRITTEN + AGAIN if name in row]
        assert mlflow_history(mlflow_client, run.info.run_id, name) == expected
        (file,) = (tmp_path / "mlruns").glob(f"*/{run.info.run_id}/metrics/{name}")
        assert [(int(line.split()[2]), float(line.split()[1])) for line in file.read_text().splitlines()] == expected
    assert [step for step, _ in mlflow_history(mlflow_client, run.info.run_id, "learner/loss")] == [1, 2, 3, 3]
    assert run.data.params == {
        "seed": "4",
        "learner.optimizer.learning_rate": "3e-05",
        "store": "None",
        "trackers": "['wandb']",
    }


def test_mlflow_without_a_server_or_a_database_of_its_own_is_one_clear_line(
    tmp_path: Path, mlflow_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setattr("treeopo.trackers.mlflow.find_spec", lambda package: None)  # as with mlflow-skinny alone
    with pytest.raises(ConfigError, match="mlflow-skinny keeps no database; set MLFLOW_TRACKING_URI to a server"):
        opened(tmp_path, "mlflow", 0)


def test_a_resumed_run_that_mlflow_no_longer_has_begins_there_anew(tmp_path: Path, mlflow_client: Any) -> None:
    (tmp_path / "trackers.json").write_text(json.dumps({"mlflow": "0" * 32}))
    trackers = opened(tmp_path, "mlflow", 2)
    trackers.steps.write(3, {"learner/loss": 0.5})
    trackers.close()
    run_id = json.loads((tmp_path / "trackers.json").read_text())["mlflow"]
    assert mlflow_history(mlflow_client, run_id, "learner/loss") == [(3, 0.5)]
