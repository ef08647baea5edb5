"""A run compares its engine with its learner: before its first step, and again whenever the newest policy has said
something.
"""

import asyncio
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, assert_never

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.conftest import WORLD
from tests.killed_run import new_run, prepare
from treeopo.engines.scripted import ScriptedEngine
from treeopo.engines.settings import Adapters, EngineOptions
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.errors import EngineError, ModelError
from treeopo.jobs.train import train as run_job
from treeopo.records import Completion, FloatArray, IntArray, Request, WeightFormat
from treeopo.run.directory import RunDirectory
from treeopo.trackers.jsonl import read_metrics


class StudentsEngine(ScriptedEngine):
    """Says what is scripted, with the log-probabilities that the student gives it at `temperature`, in the version that
    each token is stamped with. `train` starts it.

    stale_from: from this version on `publish` returns and changes nothing. overtaken: how many requests a batch has, if
    a batch is to be overtaken by the publication of its number: then that version says the second half. rounding: by so
    much log-probabilities are off, up and down in turn, from the ninth request on.
    """

    def __init__(
        self,
        model: str,
        temperature: float,
        *,
        stale_from: int | None = None,
        overtaken: int | None = None,
        weight_format: WeightFormat = WeightFormat.MERGED,
        scores: bool = True,
        rounding: float = 0.0,
    ) -> None:
        super().__init__(WORLD, ModelTokenizer(model), weight_format=weight_format)
        self._models = {0: AutoModelForCausalLM.from_pretrained(model).eval()}
        self._temperature = temperature
        self._stale_from = stale_from
        self._overtaken = overtaken
        self._scores = scores
        self._rounding = rounding
        self._changed = asyncio.Condition()
        self.scored: list[int] = []

    async def generate(self, request: Request) -> Completion:
        number = self.requests
        completion = await super().generate(request)
        if self._overtaken is not None:
            await self._until(number // self._overtaken)
            completion.versions[len(completion.versions) // 2 :] = self.version
        ids = np.concatenate([request.token_ids, completion.token_ids])
        for version in set(completion.versions.tolist()):
            mine = completion.versions == version
            completion.logprobs[mine] = self._logprobs(version, ids, len(request.token_ids), self._temperature)[mine]
        if number >= 8:
            completion.logprobs[::2] += self._rounding
            completion.logprobs[1::2] -= self._rounding
        return completion

    async def score(self, token_ids: Sequence[IntArray], prefix_lengths: Sequence[int]) -> list[FloatArray]:
        if not self._scores:
            raise EngineError("this server gives no log-probabilities of a prompt")
        self.scored.append(self.version)
        return [
            self._logprobs(self.version, ids, length, 1.0)
            for ids, length in zip(token_ids, prefix_lengths, strict=True)
        ]

    async def publish(self, version: int, path: Path) -> None:
        if self._stale_from is None or version < self._stale_from:
            self._models[version] = self._loaded(path)
        else:
            self._models[version] = self._models[self.version]
        async with self._changed:
            await super().publish(version, path)
            self._changed.notify_all()

    def _loaded(self, path: Path) -> Any:
        model = copy.deepcopy(self._models[0])
        match self.weight_format:
            case WeightFormat.MERGED:
                model.load_state_dict(load_file(path), strict=False)
            case WeightFormat.ADAPTER:
                model = PeftModel.from_pretrained(model, str(path)).eval()
            case _:
                assert_never(self.weight_format)
        return model

    async def _until(self, version: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self.version >= version)

    def _logprobs(self, version: int, token_ids: IntArray, prefix: int, temperature: float) -> FloatArray:
        ids = torch.as_tensor(token_ids, dtype=torch.long)[None]
        with torch.no_grad():
            logits = self._models[version](input_ids=ids).logits[0, prefix - 1 : -1] / temperature
        found: FloatArray = torch.log_softmax(logits, -1).gather(1, ids[0, prefix:, None])[:, 0].numpy()
        return found


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("start")
    prepare(directory)
    return directory


def train(run: RunDirectory, temperature: float, **engine: Any) -> StudentsEngine:
    """Train to the end; the engine that was used, made with `engine`."""
    started: list[StudentsEngine] = []

    async def start_engine(model: str, options: EngineOptions, adapters: Adapters | None) -> ScriptedEngine:
        started.append(StudentsEngine(model, temperature, **engine))
        return started[-1]

    run_job(run, lambda notice: None, lambda step, metrics: None, start_engine)
    return started[-1]


@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_a_run_whose_engine_agrees_with_its_learner_starts_and_reports_by_how_much(
    workplace: Path, temperature: float
) -> None:
    settings = {"steps": 2, "rollout.behaviour.sequences": 8, "rollout.temperature": temperature}
    run = new_run(workplace, f"agrees-{temperature}", **settings)
    train(run, temperature)
    first, second = read_metrics(run.metrics)  # the second batch was sampled under version 0 too
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


LIVELY: dict[str, Any] = {
    "steps": 10,
    "engine.dtype": "float32",  # what the engine of these tests computes in, so what it is published
    "rollout.batch_size": 32,
    "rollout.behaviour.sequences": 8,
    "learner.optimizer.learning_rate": 1e-2,  # a step moves the policy by 5e-4 to 5e-2 nats a token
}


@pytest.mark.parametrize(("staleness", "overtaken"), [(0, None), (1, 32)])
def test_an_engine_that_serves_what_it_says_is_compared_at_every_step_and_runs_to_the_end(
    workplace: Path, staleness: int, overtaken: int | None
) -> None:
    run = new_run(workplace, f"honest-{staleness}", **LIVELY, **{"rollout.max_staleness": staleness})
    engine = train(run, 1.0, overtaken=overtaken)
    rows = read_metrics(run.metrics)
    assert len(rows) == LIVELY["steps"]
    assert run.is_complete
    assert [row["step"] for row in rows if "behaviour/difference_max" in row] == [1]
    assert all(row["behaviour/kl"] < 1e-6 for row in rows)
    assert all(row["behaviour/mass"] == pytest.approx(1, abs=1e-3) for row in rows)
    assert all(row["behaviour/tokens"] >= 64 for row in rows)
    assert engine.scored == []


@pytest.mark.parametrize("stale_from", [1, 7])
@pytest.mark.parametrize(("staleness", "overtaken"), [(0, None), (1, 32)])
def test_an_engine_that_keeps_older_weights_than_it_says_stops_the_run_within_three_steps(
    workplace: Path, stale_from: int, staleness: int, overtaken: int | None
) -> None:
    name = f"stale-{staleness}-{stale_from}"
    run = new_run(workplace, name, **LIVELY, **{"rollout.max_staleness": staleness})
    with pytest.raises(EngineError, match="it keeps older weights") as error:
        train(run, 1.0, stale_from=stale_from, overtaken=overtaken)
    version = stale_from + 1
    assert f"step {version + 1}: the engine says that it serves version {version}, but" in str(error.value)
    assert "\n" not in str(error.value)
    rows = read_metrics(run.metrics)
    assert len(rows) == version  # the step that was judged is no step of the run
    assert rows[-1]["behaviour/kl"] > 1e-4


def test_an_engine_that_rounds_only_behind_the_first_sequences_is_judged_by_the_whole_first_batch(
    workplace: Path,
) -> None:
    run = new_run(workplace, "rounds", **LIVELY, **{"rollout.max_staleness": 0})
    train(run, 1.0, rounding=0.07)
    first, *others = read_metrics(run.metrics)
    assert first["behaviour/kl"] < 1e-6
    assert min(row["behaviour/kl"] for row in others) > 2e-3
    assert run.is_complete


def test_a_stopped_run_goes_on_with_an_honest_engine_and_compares_it_under_the_version_it_resumes_at(
    workplace: Path,
) -> None:
    run = new_run(workplace, "mended", **LIVELY, **{"rollout.max_staleness": 0})
    with pytest.raises(EngineError, match="it keeps older weights"):
        train(run, 1.0, stale_from=7)
    resumed = RunDirectory.open(run.path)
    train(resumed, 1.0)
    rows = read_metrics(run.metrics)
    assert [row["step"] for row in rows if "behaviour/difference_max" in row] == [1, 7]  # a checkpoint is at step 6
    assert rows[6]["behaviour/difference_max"] < 1e-3
    assert len(rows) == LIVELY["steps"]


@pytest.mark.parametrize(("stale_from", "stopped_at"), [(None, None), (1, 5), (7, 9)])
def test_where_no_token_is_of_the_newest_version_the_engine_is_asked_for_scores_at_every_fourth_step(
    workplace: Path, stale_from: int | None, stopped_at: int | None
) -> None:
    """Adapters, and a batch in reserve: a request keeps the version that it began with."""
    run = new_run(workplace, f"adapter-{stale_from}", **LIVELY, **{"rollout.max_staleness": 1})
    options = {"weight_format": WeightFormat.ADAPTER, "stale_from": stale_from}
    if stopped_at is None:
        assert train(run, 1.0, **options).scored == [4, 8]
        compared = [row["step"] for row in read_metrics(run.metrics) if row.get("behaviour/kl", 1) < 1e-6]
        assert compared == [1, 5, 9]
        return
    with pytest.raises(EngineError, match=f"says that it serves version {stopped_at}, but"):
        train(run, 1.0, **options)


def test_an_engine_that_does_not_score_is_not_asked_again(workplace: Path) -> None:
    run = new_run(workplace, "scoreless", **LIVELY, **{"rollout.max_staleness": 1})
    train(run, 1.0, weight_format=WeightFormat.ADAPTER, scores=False)
    assert run.is_complete
    assert [row["step"] for row in read_metrics(run.metrics) if "behaviour/kl" in row] == [1]


def test_nothing_is_compared_where_no_sequences_are(workplace: Path) -> None:
    run = new_run(workplace, "unwatched", **{**LIVELY, "steps": 4, "rollout.behaviour.sequences": 0})
    train(run, 1.0, stale_from=1)
    assert not [name for row in read_metrics(run.metrics) for name in row if name.startswith("behaviour/")]
