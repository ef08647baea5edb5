"""Every method that the registry names takes steps through the real composition: scripted engine, real learner."""

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import WORLD
from tests.killed_run import new_run, prepare
from tests.metric_names import is_documented
from treeopo.engines.scripted import ScriptedEngine
from treeopo.engines.settings import Adapters, EngineOptions
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.jobs.train import train
from treeopo.methods import METHODS, Need
from treeopo.trackers.jsonl import read_metrics

STEPS = 2
OF_THE_ENGINE = {"engine", "grader"}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("methods")
    prepare(directory)
    return directory


async def start_engine(model: str, options: EngineOptions, adapters: Adapters | None) -> ScriptedEngine:
    return ScriptedEngine(WORLD, ModelTokenizer(model))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_runs_by_its_name(workplace: Path, name: str) -> None:
    method = METHODS[name]
    settings: dict[str, Any] = {"teacher": str(workplace / "student")} if Need.TEACHER in method.needs else {}
    if "critic" in name:
        settings["critic.warmup_steps"] = 1
    run = new_run(workplace, name, method=name, steps=STEPS, **settings)
    summary = train(run, lambda notice: None, lambda step, metrics: None, start_engine)
    assert summary.complete
    rows = read_metrics(run.metrics)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    written = {metric for row in rows for metric in row} - {"step"}
    assert [metric for metric in sorted(written) if not is_documented(metric)] == []
    namespaces = {metric.partition("/")[0] for metric in written}
    assert namespaces >= {"learner", "pipeline"}
    assert namespaces & OF_THE_ENGINE == (OF_THE_ENGINE if Need.ENGINE in method.needs else set())
    assert (run.adapter / "adapter_model.safetensors").exists()
    if method.teacher_by is not None:
        assert (run.path / "teacher-model" / "model.safetensors").exists()
