"""Rollouts on disk are exactly those of the steps that count, whole, readable in one line, and worth no run."""

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import WORLD
from tests.killed_run import new_run, prepare
from treeopo.config import TrainConfig, load_config
from treeopo.engines.scripted import CharTokenizer, ScriptedEngine
from treeopo.engines.settings import Adapters, EngineOptions
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.errors import ConfigError
from treeopo.jobs.train import train
from treeopo.learner.checkpoints import Checkpoints
from treeopo.methods import METHODS, Need
from treeopo.records import (
    Completion,
    FinishReason,
    Prompt,
    PromptGroup,
    Rollout,
    RolloutGroup,
    TrainBatch,
    TrainSequence,
)
from treeopo.run.directory import RunDirectory
from treeopo.run.kept_rollouts import KeptRollouts
from treeopo.trackers import read_metrics

COLUMNS = [
    *("step", "group", "problem", "node", "depth", "prompt", "completion", "prompt_ids", "token_ids", "logprobs"),
    *("versions", "reward", "value", "advantage", "finish_reason", "seed"),
]


def rollout(prompt: str, answer: str, node: int, reward: float) -> Rollout:
    ids = np.array(CharTokenizer().encode(answer), np.int32)
    length = len(ids)
    return Rollout(
        prompt=Prompt(node, np.array(CharTokenizer().encode(prompt), np.int32), node, len(prompt), True),
        completion=Completion(
            ids, np.linspace(-1, 0, length, dtype=np.float32), np.full(length, 3, np.int32), answer, FinishReason.STOP
        ),
        reward=reward,
        served_version=3,
        seed=2**62 + node,
    )


def groups_of(number: int) -> list[RolloutGroup]:
    """Two groups of two rollouts, of problems 0 and 1."""
    return [
        RolloutGroup(
            PromptGroup(2 * number + problem, problem, np.array([-1, 0], np.int32), ()),
            (rollout(f"Q{problem}", "5", 0, 0.0), rollout(f"Q{problem}\nsteps", "is 12", 1, 1.0)),
        )
        for problem in range(2)
    ]


def batch_of(number: int, groups: Sequence[RolloutGroup]) -> TrainBatch:
    rollouts = [each for group in groups for each in group.rollouts]
    sequences = [
        TrainSequence(
            token_ids=np.concatenate([each.prompt.token_ids, each.completion.token_ids]),
            prefix_length=len(each.prompt.token_ids),
            advantages=np.full(len(each.completion.token_ids), index - 1.5, np.float32),
            behaviour_logprobs=each.completion.logprobs,
            versions=each.completion.versions,
        )
        for index, each in enumerate(rollouts)
    ]
    return TrainBatch(number, tuple(sequences), {}, np.arange(len(rollouts)) / 10)


def opened(directory: Path, newest: int | None = None, resume_at: int = 0) -> KeptRollouts:
    return KeptRollouts(directory, newest, resume_at, "problem {}".format, CharTokenizer().decode)


def keep(directory: Path, steps: Sequence[int], newest: int | None = None, resume_at: int = 0) -> None:
    """The rollouts of a run, or of its rest, that takes these steps."""
    kept = opened(directory, newest, resume_at)
    for step in steps:
        kept.take(groups_of(step - 1), batch_of(step - 1, groups_of(step - 1)))
        kept.commit(step)
    kept.close()


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def parts(*steps: int) -> list[str]:
    return [f"step-{step:06d}.parquet" for step in steps]


def rows(directory: Path) -> list[dict[str, Any]]:
    from pyarrow.parquet import read_table  # type: ignore[import-untyped]

    found: list[dict[str, Any]] = read_table(directory).to_pylist()
    return found


# What a part holds


def test_a_row_says_of_a_rollout_what_the_records_say(tmp_path: Path) -> None:
    keep(tmp_path, [17])
    found, groups = rows(tmp_path), groups_of(16)
    assert [list(row) for row in found] == [COLUMNS] * 4
    drawn = [(group.drawn, each) for group in groups for each in group.rollouts]
    for index, (row, (group, each)) in enumerate(zip(found, drawn, strict=True)):
        assert (row["step"], row["group"], row["problem"]) == (17, group.number, f"problem {group.problem}")
        assert (row["node"], row["depth"], row["seed"]) == (each.prompt.node, each.prompt.depth, each.seed)
        assert row["prompt"] == CharTokenizer().decode(list(each.prompt.token_ids))
        assert (row["completion"], row["finish_reason"]) == (each.completion.text, "stop")
        np.testing.assert_array_equal(row["prompt_ids"], each.prompt.token_ids)
        np.testing.assert_array_equal(row["token_ids"], each.completion.token_ids)
        np.testing.assert_array_equal(np.array(row["logprobs"], np.float32), each.completion.logprobs)
        np.testing.assert_array_equal(row["versions"], each.completion.versions)
        assert (row["reward"], row["value"], row["advantage"]) == (each.reward, index / 10, index - 1.5)


def test_what_does_not_apply_is_null(tmp_path: Path) -> None:
    """No baseline where the teacher is the reward; no one advantage where tokens have their own, or there are none."""
    groups = groups_of(0)
    batch = batch_of(0, groups)
    own = replace(batch.sequences[1], advantages=np.array([0, 0, 0, 0, 1], np.float32))
    none = replace(batch.sequences[2], advantages=np.array([], np.float32))
    kept = opened(tmp_path)
    kept.take(groups, replace(batch, sequences=(batch.sequences[0], own, none, batch.sequences[3]), values=None))
    kept.commit(1)
    kept.close()
    assert [row["value"] for row in rows(tmp_path)] == [None] * 4
    assert [row["advantage"] for row in rows(tmp_path)] == [-1.5, None, None, 1.5]


def test_pandas_and_datasets_read_a_run_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import pandas as pd  # type: ignore[import-untyped]

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_UPDATE_DOWNLOAD_COUNTS", False)  # it would call home
    run = tmp_path / "run" / "rollouts"
    keep(run, [1, 2, 3])
    (run / ".step-000004.partial").write_bytes(b"half a par")
    frame = pd.read_parquet(run)
    assert list(frame.columns) == COLUMNS
    assert frame.groupby("step").size().to_dict() == {1: 4, 2: 4, 3: 4}
    assert frame.reward.mean() == 0.5
    in_folder = datasets.load_dataset("parquet", data_dir=str(run), split="train")
    by_name = datasets.load_dataset("parquet", data_files=f"{run}/*.parquet", split="train")
    for found in (in_folder, by_name):
        assert found.column_names == COLUMNS
        assert found["step"][:] == [1] * 4 + [2] * 4 + [3] * 4
        assert found[11]["token_ids"] == frame.token_ids[11].tolist()


# Which parts there are


def test_a_batch_is_on_disk_only_once_its_step_is_taken(tmp_path: Path) -> None:
    kept = opened(tmp_path)
    for number in range(3):
        kept.take(groups_of(number), batch_of(number, groups_of(number)))
    asyncio.run(kept.written())
    assert names(tmp_path) == []
    kept.commit(1)
    kept.commit(2)
    asyncio.run(kept.written())
    assert names(tmp_path) == parts(1, 2)
    kept.close()
    assert names(tmp_path) == parts(1, 2)
    for step in (1, 2):
        assert {row["step"] for row in rows(tmp_path / f"step-{step:06d}.parquet")} == {step}


def test_whoever_hands_over_waits_for_nothing(tmp_path: Path) -> None:
    gate = threading.Event()

    def slow(token_ids: list[int]) -> str:
        assert gate.wait(60)
        return "text"

    kept = KeptRollouts(tmp_path, None, 0, str, slow)
    for step in (1, 2, 3):
        kept.take(groups_of(step - 1), batch_of(step - 1, groups_of(step - 1)))
        kept.commit(step)
    assert names(tmp_path) == []  # all came back, and the first has not been decoded
    gate.set()
    kept.close()
    assert names(tmp_path) == parts(1, 2, 3)


@pytest.mark.parametrize(("newest", "left"), [(None, (1, 2, 3, 4, 5)), (2, (4, 5)), (1, (5,)), (9, (1, 2, 3, 4, 5))])
def test_so_many_of_the_newest_steps_are_kept(tmp_path: Path, newest: int | None, left: tuple[int, ...]) -> None:
    keep(tmp_path, [1, 2, 3, 4, 5], newest)
    assert names(tmp_path) == parts(*left)


def test_a_resumed_run_drops_later_steps_and_what_was_half_written(tmp_path: Path) -> None:
    keep(tmp_path, [1, 2, 3, 4])
    (tmp_path / ".step-000005.partial").write_bytes(b"half a par")
    (tmp_path / "step-notes.parquet").write_bytes(b"a person's own")
    opened(tmp_path, resume_at=2).close()
    assert names(tmp_path) == [*parts(1, 2), "step-notes.parquet"]


def test_a_resumed_run_keeps_no_more_than_it_should(tmp_path: Path) -> None:
    """As after steps that a full disk left out."""
    keep(tmp_path, [1, 2, 3])
    keep(tmp_path, [6, 7], newest=3, resume_at=5)
    assert names(tmp_path) == parts(6, 7)


# What can fail


def test_a_full_disk_ends_the_recording_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = opened(tmp_path)
    (tmp_path / ".step-000002.partial").symlink_to("/dev/full")
    with caplog.at_level(logging.WARNING):
        for step in (1, 2, 3, 4):
            kept.take(groups_of(step - 1), batch_of(step - 1, groups_of(step - 1)))
            kept.commit(step)
        asyncio.run(kept.written())
        kept.close()
    assert names(tmp_path) == parts(1)
    (record,) = caplog.records
    assert record.getMessage() == (
        f"rollouts are no longer kept in {tmp_path} (OSError: [Errno 28] No space left on device); "
        "the run goes on, metrics.jsonl has its figures"
    )


def test_a_directory_that_cannot_be_made_is_a_warning_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "rollouts").write_text("a file")
    keep(tmp_path / "rollouts", [1, 2])
    assert [record.getMessage()[:28] for record in caplog.records] == ["rollouts are no longer kept "]


# The setting


@pytest.mark.parametrize(("given", "read"), [("all", "all"), ("none", "none"), ("7", 7), (7, 7), (0, 0), (None, 100)])
def test_it_is_a_number_all_or_none(given: object, read: object) -> None:
    flags = {"output": "run", "rollouts_kept": given}
    config = load_config(TrainConfig, file=None, flags=flags)
    assert config.rollouts_kept == read
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("given", ["some", "-1", -1, 2.5, True, ""])
def test_anything_else_is_refused_in_one_line(given: object) -> None:
    with pytest.raises(ConfigError, match="is no number of steps; give 0 or more, or all, or none") as error:
        load_config(TrainConfig, file=None, flags={"output": "run", "rollouts_kept": given})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", [name for name in METHODS if Need.ENGINE not in METHODS[name].needs])
def test_a_method_that_samples_nothing_has_none_to_keep(method: str) -> None:
    with pytest.raises(ConfigError, match=f"rollouts_kept: method {method} samples nothing"):
        load_config(TrainConfig, file=None, flags={"output": "run", "method": method, "rollouts_kept": "all"})


# Whole runs


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("kept")
    prepare(directory)
    return directory


def trained(run: RunDirectory) -> RunDirectory:
    async def start_engine(model: str, options: EngineOptions, adapters: Adapters | None) -> ScriptedEngine:
        return ScriptedEngine(WORLD, ModelTokenizer(model))

    assert train(run, lambda notice: None, lambda step, metrics: None, start_engine).complete
    return run


def test_a_run_has_a_part_a_step_with_the_rewards_of_its_metrics(workplace: Path) -> None:
    run = trained(new_run(workplace, "run", steps=4))
    assert names(run.rollouts) == parts(1, 2, 3, 4)
    found = rows(run.rollouts)
    for step in read_metrics(run.metrics):
        of_step = [row for row in found if row["step"] == step["step"]]
        assert len(of_step) == 8
        assert np.mean([row["reward"] for row in of_step]) == step["rollout/reward"]
        assert sum(len(row["token_ids"]) for row in of_step) == step["rollout/tokens"]
    tokenizer = ModelTokenizer(str(workplace / "student"))
    for row in found:
        assert row["problem"] in {f"p{index}" for index in range(6)}
        assert row["prompt"] == tokenizer.decode(row["prompt_ids"])
        assert row["prompt"].count("\n\n") == 1 + row["depth"]  # the question ends so, and each step
    assert len({row["seed"] for row in found}) == len(found)


def test_a_checkpoint_waits_for_the_files_of_its_steps(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that resumes from it never takes them again."""
    run = new_run(workplace, "waits", steps=3)
    found: list[list[str]] = []
    write, save = KeptRollouts._write, Checkpoints.save

    def write_slowly(self: KeptRollouts, step: int) -> None:
        time.sleep(0.5)
        write(self, step)

    def save_and_look(self: Checkpoints, *arguments: Any) -> Path:
        found.append(names(run.rollouts))
        return save(self, *arguments)

    monkeypatch.setattr(KeptRollouts, "_write", write_slowly)
    monkeypatch.setattr(Checkpoints, "save", save_and_look)
    trained(run)
    assert found == [parts(1, 2, 3)]


def test_a_run_that_keeps_none_leaves_no_directory(workplace: Path) -> None:
    for number, kept in enumerate(("none", 0)):
        run = trained(new_run(workplace, f"none-{number}", steps=1, rollouts_kept=kept))
        assert not run.rollouts.exists()


def test_a_run_goes_on_when_its_rollouts_do_not_fit(workplace: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = new_run(workplace, "full", steps=3)
    run.rollouts.write_text("in the way")
    trained(run)
    assert [row["step"] for row in read_metrics(run.metrics)] == [1, 2, 3]
    assert sum("rollouts are no longer kept" in record.getMessage() for record in caplog.records) == 1


def test_the_first_stage_of_a_run_does_not_take_over_how_many_it_keeps(workplace: Path) -> None:
    """It samples nothing, and its settings must be readable when the run is resumed."""
    settings = {"method": "mcts-reinforce", "teacher": str(workplace / "student"), "rollouts_kept": 1}
    run = trained(new_run(workplace, "stages", steps=2, **settings))
    assert names(run.rollouts) == parts(2)
    assert RunDirectory.open(run.path / "teacher").is_complete
