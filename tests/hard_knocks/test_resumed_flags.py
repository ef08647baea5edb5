"""`--resume` with settings beside it: each is taken or refused by name, and none is passed over.

Sources: huggingface/transformers#27749, #34053, Nerogar/OneTrainer#297, #1604, mlfoundations/open_clip#413,
mosaicml/composer#1384, bghira/SimpleTuner#1172, kohya-ss/sd-scripts#1999, google/automl#666, tensorflow/models#10468.
"""

import json
import math
import os
import shutil
from pathlib import Path

import pytest
from treeopo_cli.main import app
from treeopo_storage import TreeStore
from typer.testing import CliRunner

from tests.student_store import student_and_store
from treeopo.config import BuildConfig, TrainConfig, load_config
from treeopo.errors import ConfigError, RunError
from treeopo.jobs.train import train
from treeopo.run.directory import RunDirectory
from treeopo.run.resume import resume_run
from treeopo.trackers.jsonl import read_metrics

RATE = 1e-2


class Stopped(Exception):  # noqa: N818
    pass


def stop_at_3(step: int, metrics: dict[str, float]) -> None:
    if step == 3:
        raise Stopped


def finish(run: RunDirectory) -> list[str]:
    notices: list[str] = []
    train(run, notices.append, lambda step, metrics: None)
    return notices


def rates(run: RunDirectory) -> list[float]:
    return [row["learner/learning_rate"] for row in read_metrics(run.metrics)]


def cosine(step: int, steps: int) -> float:
    """Of the step with that number, the first is 1."""
    return RATE * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))


@pytest.fixture(scope="module")
def template(searched_store: TreeStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of sft of 4 steps that ended in the third, with a checkpoint of the second; its store and student."""
    directory = tmp_path_factory.mktemp("resumed")
    student, store = student_and_store(directory, searched_store)
    flags = {
        "store": store, "output": directory / "run", "student": str(student), "method": "sft", "steps": 4,
        "learner.optimizer.learning_rate": RATE, "rollout.batch_size": 8, "learner.lora.rank": 2, "checkpoint_every": 2,
    }  # fmt: skip
    created = RunDirectory.create(load_config(TrainConfig, file=None, flags=flags))
    with pytest.raises(Stopped):
        train(created, lambda notice: None, stop_at_3)
    return directory


@pytest.fixture
def stopped(template: Path, tmp_path: Path) -> RunDirectory:
    return RunDirectory.open(Path(shutil.copytree(template / "run", tmp_path / "run")))


def resumed(run: RunDirectory, **settings: object) -> RunDirectory:
    return resume_run(run.path, file=None, flags={name.replace("__", "."): value for name, value in settings.items()})


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--learning-rate", "1e-5"], "--learning-rate 1e-05: the run has 0.01; leave it out, or start a new run"),
        (["--seed", "7"], "--seed 7: the run has 0"),
        (["--method", "dvo"], "--method dvo: the run has sft"),
        (["--steps", "3"], "--steps 3: the run is of 4 steps, which may be raised only"),
        (["--set", "learner.lora.rank=8"], "learner.lora.rank 8: the run has 2"),
        (["-o", "other"], "--output other: the run has"),
        (["--engine", "http://here:1"], "--engine ['http://here:1']: the run has nothing"),
        (["--set", "nonsense=1"], "nonsense"),
        (["--set", "novalue"], "--set novalue: write it as name=value"),
        (["--config", "nowhere.toml"], "nowhere.toml: cannot be read"),
    ],
)
def test_another_setting_beside_resume_is_refused_by_the_flag_and_the_runs_value(
    stopped: RunDirectory, arguments: list[str], expected: str
) -> None:
    result = CliRunner().invoke(app, ["train", "--resume", str(stopped.path), *arguments])
    assert isinstance(result.exception, RunError | ConfigError)
    assert expected in str(result.exception)
    assert "\n" not in str(result.exception)
    assert len(read_metrics(stopped.metrics)) == 3


def test_another_setting_in_a_file_beside_resume_is_refused_too(stopped: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "more.toml").write_text("steps = 8\n[learner.optimizer]\nlearning_rate = 1e-5\n")
    with pytest.raises(RunError, match=r"learner\.optimizer\.learning_rate 1e-05: the run has 0\.01"):
        resume_run(stopped.path, file=tmp_path / "more.toml", flags={})


def test_settings_that_equal_the_runs_are_taken(stopped: RunDirectory) -> None:
    run = resumed(
        stopped, seed=0, steps=4, output=os.path.relpath(stopped.path), learner__optimizer__learning_rate=RATE
    )
    assert not run.changes
    assert run.config == stopped.config


def test_more_steps_lengthen_a_stopped_run_and_the_rate_follows_the_longer_cosine(stopped: RunDirectory) -> None:
    run = resumed(stopped, steps=8)
    assert any("4 steps become 8" in notice for notice in finish(run))
    expected = [cosine(1, 4), cosine(2, 4), *(cosine(step, 8) for step in range(3, 9))]
    assert rates(run) == pytest.approx(expected)
    assert RunDirectory.open(run.path).config.steps == 8
    assert json.loads((run.path / "config.json").read_text())["changes"] == [{"steps": [4, 8]}]


def test_more_steps_lengthen_a_complete_run_which_keeps_what_it_had(stopped: RunDirectory) -> None:
    finish(stopped)
    before = (stopped.adapter / "adapter_model.safetensors").read_bytes()
    notices = finish(RunDirectory.open(stopped.path))
    assert f"{stopped.path} is complete; it goes on if --steps is more than 4" in notices
    run = resumed(stopped, steps=6)
    assert any("goes on where a run of 6 steps stands there" in notice for notice in finish(run))
    assert rates(run)[4:] == pytest.approx([cosine(5, 6), cosine(6, 6)])
    assert run.is_complete
    assert (run.path / "adapter-step-000004" / "adapter_model.safetensors").read_bytes() == before
    assert (run.adapter / "adapter_model.safetensors").read_bytes() != before


def test_how_often_checkpoints_are_kept_may_change(stopped: RunDirectory) -> None:
    finish(resumed(stopped, checkpoint_every=1, checkpoints_kept=3))
    assert sorted(path.name for path in stopped.checkpoints.iterdir()) == ["step-000002", "step-000003", "step-000004"]


def test_a_first_stage_keeps_its_length_when_the_run_is_made_longer(stopped: RunDirectory) -> None:
    record = json.loads((stopped.path / "config.json").read_text())
    record["config"] |= {"method": "mcts-reinforce"}
    (stopped.path / "config.json").write_text(json.dumps(record))
    assert resumed(stopped, steps=8).config.teacher_steps == 4


def test_an_output_in_a_file_is_not_overruled_by_the_flags_default(tmp_path: Path) -> None:
    """Found here: the default of -o was given as if it were a flag, and flags win over files."""
    (tmp_path / "train.toml").write_text('output = "mine"\nstore = "no.zarr"\nstudent = "./no-model"\n')
    result = CliRunner().invoke(app, ["train", "--config", str(tmp_path / "train.toml"), "--set", "method=nothing"])
    assert "nothing" in str(result.exception)
    assert load_config(TrainConfig, file=tmp_path / "train.toml", flags={}).output == Path("mine")
    assert load_config(TrainConfig, file=None, flags={}).output == Path("runs/latest")
    assert load_config(BuildConfig, file=None, flags={}).output == Path("trees.zarr")
