"""What version 0.1 left behind still works: a store, a run that was stopped halfway, its settings and its metrics.

tests/data/version-0.1.tar.gz was written by commit f2e1793: six problems of `WORLD` searched, three of six steps of a
synchronous run over the scripted engine, and what that version itself had as metrics of all six in the end.
"""

import json
import shutil
import tarfile
from pathlib import Path

import pytest
from treeopo_storage import open_store

from tests.killed_run import policy_of_the_version
from treeopo.config import TrainConfig, load_config
from treeopo.engines.scripted import ScriptedEngine
from treeopo.engines.settings import Adapters, EngineOptions
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.errors import ConfigError, RunError
from treeopo.inspect.find import overview
from treeopo.jobs.train import train
from treeopo.run.directory import RunDirectory
from treeopo.run.models import resolve
from treeopo.trackers.jsonl import read_metrics

ARCHIVE = Path(__file__).parents[1] / "data" / "version-0.1.tar.gz"


@pytest.fixture
def left_behind(tmp_path: Path) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    settings = tmp_path / "run" / "config.json"
    settings.write_text(settings.read_text().replace("WORKPLACE", str(tmp_path)))
    return tmp_path


def test_a_store_of_version_0_1_reads_as_it_was_written(left_behind: Path) -> None:
    store = open_store(left_behind / "trees.zarr")
    assert store.problem_count == 6
    assert store.meta.teacher == "scripted"
    _, report = overview(left_behind / "trees.zarr")
    assert report.problems == 6
    assert report.prefixes == store.node_count


def test_a_run_of_version_0_1_goes_on_to_the_figures_that_it_would_have_had(left_behind: Path) -> None:
    async def start_engine(model: str, options: EngineOptions, adapters: Adapters | None) -> ScriptedEngine:
        return ScriptedEngine(policy_of_the_version, ModelTokenizer(model))

    run = RunDirectory.open(left_behind / "run")
    assert resolve(str(run.path)).adapter == run.checkpoints / "step-000003" / "adapter"
    summary = train(run, lambda notice: None, lambda step, metrics: None, start_engine)
    assert summary.complete
    found, expected = read_metrics(run.metrics), read_metrics(left_behind / "expected-metrics.jsonl")
    assert [row["step"] for row in found] == [1, 2, 3, 4, 5, 6]
    for row, was in zip(found, expected, strict=True):
        for name in ("rollout/reward", "rollout/tokens", "advantage/variance", "learner/loss", "learner/grad_norm"):
            assert row[name] == pytest.approx(was[name], rel=1e-4), (row["step"], name)


def test_settings_under_their_old_names_are_taken(tmp_path: Path) -> None:
    (tmp_path / "old.toml").write_text('output = "o"\n[grading]\nfamily = "math"\n')
    assert load_config(TrainConfig, file=tmp_path / "old.toml", flags={}).grading.grader == "math"
    record = json.loads(load_config(TrainConfig, file=None, flags={"output": "o"}).model_dump_json())
    del record["grading"]["grader"]
    record["grading"]["family"] = "number-strict"
    assert TrainConfig.model_validate(record).grading.grader == "number-strict"
    with pytest.raises(ConfigError, match="family is the earlier name of grader; give grader alone"):
        load_config(TrainConfig, file=tmp_path / "old.toml", flags={"grading.grader": "number"})


def test_a_grpo_run_of_version_0_1_opens_whatever_advantage_settings_it_ignored(left_behind: Path) -> None:
    path = left_behind / "run" / "config.json"
    record = json.loads(path.read_text())
    record["config"] |= {"method": "grpo", "advantage": record["config"]["advantage"] | {"method": "loo"}}
    path.write_text(json.dumps(record))
    _, advantage = RunDirectory.open(left_behind / "run").config.group_plan
    assert (advantage.method, advantage.standardize) == ("grpo", True)


def test_a_run_that_has_taken_no_step_is_no_model(left_behind: Path) -> None:
    (left_behind / "run" / "metrics.jsonl").unlink()
    shutil.rmtree(left_behind / "run" / "checkpoints")
    with pytest.raises(RunError, match="the run has no checkpoint yet"):
        resolve(str(left_behind / "run"))
    assert resolve(str(left_behind / "student")).base == str(left_behind / "student")
