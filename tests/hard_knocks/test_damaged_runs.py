"""Runs that were copied in part or lost power: damage is passed over or named, and nothing readable is lost."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.killed_run import new_run, prepare
from treeopo.errors import RunError
from treeopo.evaluation.accuracy import Graded
from treeopo.evaluation.answers import Answers
from treeopo.evaluation.periodic import BEST_RECORD, read_best
from treeopo.jobs.train import train
from treeopo.learner.checkpoints import Checkpoints
from treeopo.run.directory import RunDirectory
from treeopo.trackers.jsonl import JsonLines, read_metrics


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of sft (no engine) at its fourth step of six, whose checkpoints are of steps 2 and 4."""
    directory = tmp_path_factory.mktemp("damage")
    prepare(directory)
    run = new_run(directory, "whole", method="sft", steps=6, checkpoint_every=2)
    train(run, lambda notice: None, lambda step, metrics: None)
    shutil.copytree(directory / "whole", directory / "stopped")
    run = RunDirectory.open(directory / "stopped")
    shutil.rmtree(run.adapter)
    shutil.rmtree(run.checkpoints / "step-000006")
    shutil.copytree(run.checkpoints / "step-000004", run.checkpoints / "step-000002")
    return directory


@pytest.fixture
def stopped(workplace: Path, tmp_path: Path) -> RunDirectory:
    shutil.copytree(workplace / "stopped", tmp_path / "run")
    return RunDirectory.open(tmp_path / "run")


def resume(run: RunDirectory) -> list[int]:
    """The steps that metrics.jsonl has at the end."""
    train(run, lambda notice: None, lambda step, metrics: None)
    assert run.is_complete
    return [row["step"] for row in read_metrics(run.metrics)]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


WEIGHTS = "adapter/adapter_model.safetensors"
DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (lambda checkpoint: cut(checkpoint / "optimizer.pt"), "optimizer.pt has 1000 of "),
    (lambda checkpoint: cut(checkpoint / WEIGHTS), f"{WEIGHTS} has 1000 of "),
    (lambda checkpoint: (checkpoint / "optimizer.pt").unlink(), "optimizer.pt is missing"),
    (lambda checkpoint: (checkpoint / "files.json").write_text("{"), "files.json is cut short"),
    (lambda checkpoint: shutil.rmtree(checkpoint / "adapter"), "is missing"),
]
DAMAGES_OF_VERSION_0_1: list[tuple[Callable[[Path], object], str]] = [
    (lambda checkpoint: cut(checkpoint / "optimizer.pt"), "optimizer.pt is cut short"),
    (lambda checkpoint: cut(checkpoint / WEIGHTS), f"{WEIGHTS} is cut short"),
    (lambda checkpoint: (checkpoint / "optimizer.pt").unlink(), "optimizer.pt is missing"),
]


# open-mmlab/mmdetection#4835, rwth-i6/returnn#1444: a checkpoint copied in part, and no word but "central directory"
@pytest.mark.parametrize(
    ("damage", "told", "lists_sizes"),
    [(*each, True) for each in DAMAGES] + [(*each, False) for each in DAMAGES_OF_VERSION_0_1],
)
def test_a_damaged_checkpoint_is_passed_over_with_a_word_for_the_one_before_it(
    stopped: RunDirectory,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], object],
    told: str,
    lists_sizes: bool,
) -> None:
    newest = stopped.checkpoints / "step-000004"
    if not lists_sizes:
        (newest / "files.json").unlink()
    damage(newest)
    assert Checkpoints(stopped.checkpoints, 2).latest() == stopped.checkpoints / "step-000002"
    assert f"{newest} is damaged" in caplog.text
    assert told in caplog.text


def test_a_run_goes_on_from_the_checkpoint_before_and_has_each_step_once(
    workplace: Path, stopped: RunDirectory
) -> None:
    cut(stopped.checkpoints / "step-000004" / "optimizer.pt")
    assert resume(stopped) == [1, 2, 3, 4, 5, 6]


def test_where_no_checkpoint_is_whole_the_run_does_not_silently_begin_anew(stopped: RunDirectory) -> None:
    for checkpoint in stopped.checkpoints.iterdir():
        cut(checkpoint / "optimizer.pt")
    before = stopped.metrics.read_bytes()
    with pytest.raises(RunError, match="no checkpoint is whole"):
        resume(stopped)
    assert stopped.metrics.read_bytes() == before


def test_a_whole_checkpoint_of_an_earlier_version_is_taken(stopped: RunDirectory) -> None:
    (stopped.checkpoints / "step-000004" / "files.json").unlink()
    assert Checkpoints(stopped.checkpoints, 2).latest() == stopped.checkpoints / "step-000004"


def spoil_line(number: int, content: bytes) -> Callable[[bytes], bytes]:
    def spoil(text: bytes) -> bytes:
        lines = text.split(b"\n")
        lines[number] = content
        return b"\n".join(lines)

    return spoil


# moby/moby#53631 (a gap of NULs after a power cut), use-agent-os/agent-os#812 (one torn line makes the file unreadable)
@pytest.mark.parametrize(
    ("spoil", "left"),
    [
        (lambda text: text + b"\0" * 300, [1, 2, 3, 4, 5, 6]),
        (lambda text: text + b'{"step": 5, "lea', [1, 2, 3, 4, 5, 6]),
        (spoil_line(1, b'{"step": 2, "lea'), [1, 3, 4, 5, 6]),
        (spoil_line(1, b"\xff\xfe"), [1, 3, 4, 5, 6]),
        (spoil_line(1, b"\0" * 300), [1, 3, 4, 5, 6]),
        (spoil_line(1, b"[]"), [1, 3, 4, 5, 6]),
        (lambda text: b"", [5, 6]),
    ],
)
def test_damaged_metrics_cost_their_own_line_and_no_more(
    stopped: RunDirectory, spoil: Callable[[bytes], bytes], left: list[int]
) -> None:
    stopped.metrics.write_bytes(spoil(stopped.metrics.read_bytes()))
    assert resume(stopped) == left


def test_a_damaged_line_is_named_and_the_file_as_it_was_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    damaged = b'{"step": 1}\n{"step": 2, "lo\n{"step": 3}\n'
    path.write_bytes(damaged)
    JsonLines(path, resume_at=3).close()
    assert f"{path}:2 is damaged and left out" in caplog.text
    assert path.with_suffix(".damaged").read_bytes() == damaged
    assert [json.loads(line)["step"] for line in path.read_bytes().splitlines()] == [1, 3]


def test_nothing_is_kept_or_said_of_a_file_that_is_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\n{"step": 2}\n{"st')
    with caplog.at_level(logging.INFO):
        JsonLines(path, resume_at=3).close()
    assert (caplog.text, [each.name for each in tmp_path.iterdir()]) == ("", ["metrics.jsonl"])


def test_a_run_whose_metrics_were_lost_is_not_begun_over(stopped: RunDirectory) -> None:
    stopped.metrics.write_bytes(b"")
    with pytest.raises(RunError, match="holds a run already"):
        RunDirectory.create(stopped.config)


@pytest.mark.parametrize("content", [b'{"config": {"st', b"\0" * 50, b"\xff\xfe{"])
def test_damaged_settings_are_called_so(stopped: RunDirectory, content: bytes) -> None:
    (stopped.path / "config.json").write_bytes(content)
    with pytest.raises(RunError, match=r"config\.json: is damaged"):
        RunDirectory.open(stopped.path)


def test_an_adapter_without_its_weights_is_no_complete_run_and_is_written_again(
    workplace: Path, stopped: RunDirectory
) -> None:
    stopped.adapter.mkdir()
    shutil.copy(workplace / "whole" / "adapter" / "adapter_config.json", stopped.adapter)
    assert not stopped.is_complete
    assert resume(stopped) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("content", [b"", b'{"version": 3, "eval', b"\0" * 40])
def test_damaged_figures_of_the_best_policy_are_as_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    (tmp_path / BEST_RECORD).write_bytes(content)
    assert read_best(tmp_path) is None
    assert "is damaged" in caplog.text


@pytest.mark.parametrize("name", ["trackers.json", "timeline.json", "evaluations.jsonl"])
@pytest.mark.parametrize("content", [b"{", b'{"step": 2, "x\n', b"\0" * 100])
def test_damage_beside_the_run_does_not_end_it(stopped: RunDirectory, name: str, content: bytes) -> None:
    (stopped.path / name).write_bytes(content)
    found: Any = resume(stopped)
    assert found == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("content", [b"", b'{"model": "m", "prob', b"\0" * 40, b"[]", b"\xff\xfe"])
def test_a_damaged_question_of_an_evaluation_is_one_line_and_costs_no_completion(
    tmp_path: Path, content: bytes
) -> None:
    with Answers(tmp_path, {"model": "m"}) as answers:
        answers.add("set", "m", Graded("p", 0, "so 5", "5", 1.0, truncated=False, tokens=3))
    before = (tmp_path / "completions.jsonl").read_bytes()
    (tmp_path / "evaluation.json").write_bytes(content)
    with pytest.raises(RunError, match=r"evaluation\.json: is damaged") as error:
        Answers(tmp_path, {"model": "m"})
    assert "\n" not in str(error.value)
    assert (tmp_path / "completions.jsonl").read_bytes() == before
    (tmp_path / "evaluation.json").unlink()
    with Answers(tmp_path, {"model": "m"}) as answers:
        assert answers.done_count == 1
