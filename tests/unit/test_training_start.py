"""Before its first step a run compares its engine with its learner, and refuses what is not alike."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.conftest import WORLD
from tests.killed_run import new_run, prepare
from treeopo.engines.scripted import ScriptedEngine
from treeopo.engines.settings import Adapters, EngineOptions
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.errors import ModelError
from treeopo.jobs.train import train as run_job
from treeopo.records import Completion, Request
from treeopo.run.directory import RunDirectory
from treeopo.trackers.jsonl import read_metrics


class StudentsEngine(ScriptedEngine):
    """Says what is scripted, with the log-probabilities that the student itself gives it at `temperature`."""

    def __init__(self, model: str, temperature: float) -> None:
        super().__init__(WORLD, ModelTokenizer(model))
        self._model = AutoModelForCausalLM.from_pretrained(model).eval()
        self._temperature = temperature

    async def generate(self, request: Request) -> Completion:
        completion = await super().generate(request)
        prompt = [int(token) for token in request.token_ids]
        ids = torch.tensor([prompt + completion.token_ids.tolist()])
        with torch.no_grad():
            logits = self._model(input_ids=ids).logits[0, len(prompt) - 1 : -1] / self._temperature
        logprobs = torch.log_softmax(logits, -1).gather(1, ids[0, len(prompt) :, None])[:, 0]
        completion.logprobs[:] = logprobs.numpy()
        return completion


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("start")
    prepare(directory)
    return directory


def train(run: RunDirectory, temperature: float) -> None:
    async def start_engine(model: str, options: EngineOptions, adapters: Adapters | None) -> ScriptedEngine:
        return StudentsEngine(model, temperature)

    run_job(run, lambda notice: None, lambda step, metrics: None, start_engine)


@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_a_run_whose_engine_agrees_with_its_learner_starts_and_reports_by_how_much(
    workplace: Path, temperature: float
) -> None:
    settings = {"steps": 2, "rollout.behaviour.sequences": 8, "rollout.temperature": temperature}
    run = new_run(workplace, f"agrees-{temperature}", **settings)
    train(run, temperature)
    first, second = read_metrics(run.metrics)
    assert first["behaviour/kl"] < 1e-6
    assert first["behaviour/difference_max"] < 1e-4
    assert first["behaviour/mass"] == pytest.approx(1, abs=1e-4)
    assert "behaviour/kl" not in second


@pytest.mark.parametrize(("asked", "given"), [(0.5, 1.0), (1.0, 0.2)])
def test_a_run_whose_engine_uses_another_temperature_takes_no_step(workplace: Path, asked: float, given: float) -> None:
    settings = {"steps": 2, "rollout.behaviour.sequences": 8, "rollout.temperature": asked}
    run = new_run(workplace, f"refused-{asked}-{given}", **settings)
    with pytest.raises(ModelError, match="engine and learner disagree"):
        train(run, given)
    assert read_metrics(run.metrics) == []
    assert not run.is_complete
