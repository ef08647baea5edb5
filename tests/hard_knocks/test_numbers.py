"""Numbers at the edge: what an engine cannot say is counted and weighs 1; rewards alike up to dust teach nothing."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.gradients import step
from tests.killed_run import new_run, prepare
from tests.tiny_models import VOCABULARY, random_qwen2
from tests.unit.test_training_start import StudentsEngine
from treeopo.advantage import staged_advantages
from treeopo.advantage.settings import AdvantageMethod
from treeopo.config import TrainConfig, load_config
from treeopo.engines.scripted import ScriptedEngine
from treeopo.engines.settings import Adapters, EngineOptions
from treeopo.errors import ConfigError, ModelError
from treeopo.jobs.train import train as run_job
from treeopo.learner.learner import Learner
from treeopo.learner.losses.kl import KlToTeacher
from treeopo.learner.losses.policy_gradient import PolicyGradient
from treeopo.learner.policy import LoraPolicy
from treeopo.learner.settings import Correction, Direction, KlSettings, LearnerSettings, LoraSettings
from treeopo.records import (
    Completion,
    FinishReason,
    FloatArray,
    Outcomes,
    Request,
    TokenColumn,
    TrainBatch,
    TrainSequence,
    known_logprobs,
)
from treeopo.rollout.behaviour import Suspect, compare_behaviour
from treeopo.rollout.settings import BehaviourSettings
from treeopo.run.directory import RunDirectory
from treeopo.trackers.jsonl import read_metrics

# huggingface/trl#6166, #6297, #6693: an engine's log-probability of a token that is nearly certain is NaN or -inf


def floats(*values: float) -> FloatArray:
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("said", "known"),
    [
        (math.nan, math.nan),
        (-math.inf, math.nan),
        (math.inf, math.nan),
        (-9999.0, math.nan),  # what a server writes for minus infinity
        (1e-7, 0.0),
        (0.0, 0.0),
        (-60.0, -60.0),
    ],
)
def test_a_log_probability_that_cannot_be_is_unknown_and_one_above_zero_by_rounding_is_zero(
    said: float, known: float
) -> None:
    ids = np.zeros(3, np.int32)
    completion = Completion(ids, floats(-0.1, said, -0.2), ids, "", FinishReason.STOP)
    np.testing.assert_array_equal(completion.logprobs, floats(-0.1, known, -0.2))
    assert completion.logprobs.dtype == np.float32


def test_log_probabilities_that_can_be_are_not_copied() -> None:
    whole = floats(-0.1, 0.0, -20.0)
    assert known_logprobs(whole) is whole


class Spoiling(StudentsEngine):
    """Says `said` for the second token of every request whose number `spoils` (all of its tokens: `whole`)."""

    def __init__(self, model: str, spoils: range, said: float, whole: bool) -> None:
        super().__init__(model, temperature=1.0)
        self._spoils, self._said, self._whole = spoils, said, whole

    async def generate(self, request: Request) -> Completion:
        number = self.requests
        completion = await super().generate(request)
        if number not in self._spoils:
            return completion
        logprobs = completion.logprobs.copy()
        logprobs[slice(None) if self._whole else slice(1, 2)] = self._said
        return replace(completion, logprobs=logprobs)


BATCH = 8
RUN: dict[str, Any] = {"steps": 3, "rollout.batch_size": BATCH, "rollout.behaviour.sequences": BATCH}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("numbers")
    prepare(directory)
    return directory


def train(run: RunDirectory, spoils: range, said: float, whole: bool = False) -> list[dict[str, Any]]:
    async def start_engine(model: str, options: EngineOptions, adapters: Adapters | None) -> ScriptedEngine:
        return Spoiling(model, spoils, said, whole)

    run_job(run, lambda notice: None, lambda step, metrics: None, start_engine)
    return read_metrics(run.metrics)


@pytest.mark.parametrize("said", [math.nan, -math.inf])
@pytest.mark.parametrize("number", [0, 2])
def test_a_run_goes_on_over_a_token_that_the_engine_cannot_tell_and_counts_it(
    workplace: Path, number: int, said: float
) -> None:
    run = new_run(workplace, f"spoilt-{number}-{said}", **RUN)
    first = number * BATCH
    rows = train(run, range(first, first + BATCH), said)
    assert run.is_complete
    expected = [0.0, 0.0, 0.0]
    expected[number] = BATCH
    assert [row["rollout/unknown_logprobs"] for row in rows] == expected
    assert [row["learner/nonfinite_steps"] for row in rows] == [0, 0, 0]
    assert all(math.isfinite(value) for row in rows for value in row.values() if isinstance(value, float))
    assert rows[0]["behaviour/kl"] < 0.02  # of the tokens that are known


def test_an_engine_that_knows_none_is_named_for_its_numerics_and_not_for_precision(workplace: Path) -> None:
    run = new_run(workplace, "unknown", **RUN)
    with pytest.raises(ModelError, match="the engine's are all NaN or infinite") as error:
        train(run, range(1000), math.nan, whole=True)
    assert "\n" not in str(error.value)
    assert read_metrics(run.metrics) == []


def test_a_learner_that_is_not_finite_is_named_for_its_weights() -> None:
    found = compare_behaviour(floats(-0.1, -0.2), floats(-0.1, math.nan))
    assert found.suspect is Suspect.LEARNER
    assert "weights that hold NaN" in str(found.complaint(BehaviourSettings()))


# The learner: two completions of 2 and 5 tokens

SETTINGS = LearnerSettings(lora=LoraSettings(rank=2, alpha=4, dropout=0.0))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_qwen2(tmp_path_factory.mktemp("models") / "qwen2", layers=1)


def learner(model: Path, settings: LearnerSettings = SETTINGS, kl: KlSettings | None = None) -> Learner:
    torch.manual_seed(0)
    policy = LoraPolicy.load(str(model), settings.lora, dtype=torch.float32, device=torch.device("cpu"))
    loss = PolicyGradient(settings) if kl is None else KlToTeacher(kl, settings, 1.0, None)
    return Learner(policy, [loss], settings, steps=8, temperature=1.0)


def row(length: int, advantage: float, behaviour: Sequence[float] | None = None) -> TrainSequence:
    ids = np.random.default_rng(length).integers(0, VOCABULARY, 4 + length).astype(np.int32)
    return TrainSequence(
        token_ids=ids,
        prefix_length=4,
        advantages=np.full(length, advantage, np.float32),
        behaviour_logprobs=np.full(length, math.nan, np.float32) if behaviour is None else floats(*behaviour),
        versions=np.zeros(length, np.int32),
    )


def batch(*rows: TrainSequence) -> TrainBatch:
    return TrainBatch(0, rows, {})


@pytest.mark.parametrize(
    "correction", ["none", "token-truncate", "sequence-truncate", "geometric-mask", "decoupled-ppo"]
)
def test_a_token_whose_behaviour_is_unknown_weighs_one(model: Path, correction: Correction) -> None:
    settings = replace(SETTINGS, correction=correction)
    plain = replace(SETTINGS, correction="none")
    found, metrics = step(learner(model, settings), batch(row(2, 1.0), row(5, -1.0)))
    expected, _ = step(learner(model, plain), batch(row(2, 1.0), row(5, -1.0)))
    torch.testing.assert_close(found, expected)
    assert metrics["learner/nonfinite_steps"] == 0


@pytest.mark.parametrize(
    ("aggregation", "total"), [("sum", 1.5), ("sequence-mean", 0.0), ("token-mean", 3 / 7), ("constant", 0.15)]
)
def test_a_loss_is_that_of_the_batch_whole_or_in_parts(model: Path, aggregation: str, total: float) -> None:
    """modelscope/twinkle#292, volcengine/verl#906, ml-explore/mlx-lm#1413. Ratio 1, advantages 1 and -1."""
    losses, gradients = [], []
    for budget in (1024, 9):  # both at once, one each
        changes: dict[str, Any] = {"aggregation": aggregation, "microbatch_tokens": budget}
        if aggregation == "constant":
            changes["constant_tokens"] = 10
        settings = replace(SETTINGS, **changes)
        found, metrics = step(learner(model, settings), batch(row(2, 1.0), row(5, -1.0)))
        losses.append(metrics["learner/loss"])
        gradients.append(found)
    assert losses == pytest.approx([total, total], abs=1e-6)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_nothing_is_distilled_from_a_token_that_the_teacher_cannot_tell(model: Path, direction: Direction) -> None:
    kl = KlSettings(estimate="sampled", direction=direction, beta=1.0)
    known = replace(row(1, 0.0, [-5.0]), extras={TokenColumn.TEACHER: floats(-3.0)})
    unknown = replace(known, extras={TokenColumn.TEACHER: floats(math.nan)})
    taught, _ = step(learner(model, kl=kl), batch(known))
    untaught, metrics = step(learner(model, kl=kl), batch(unknown))
    assert (metrics["learner/kl"], metrics["learner/nonfinite_steps"]) == (0.0, 0)
    assert any(gradient.abs().max() > 0 for gradient in taught)
    assert all(gradient.abs().max() == 0 for gradient in untaught)


# Groups that say nothing: huggingface/trl#3452, #3857, rasbt/reasoning-from-scratch#186; of one: volcengine/verl#3635

TREE = [-1, 0, 1, 1]
NODES = [1, 2, 3, 0]
BINARY_ONLY = {
    AdvantageMethod.OPTIMISTIC,
    AdvantageMethod.PESSIMISTIC,
    AdvantageMethod.POSTERIOR,
    AdvantageMethod.QP_HARD,
    AdvantageMethod.QP_CONVEX,
    AdvantageMethod.QP_SOFT,
}


def advantages(method: AdvantageMethod, nodes: Sequence[int], rewards: Sequence[float]) -> Any:
    rollouts = Outcomes(np.full(len(nodes), 8.0), np.full(len(nodes), 3.0)) if method is AdvantageMethod.MC else None
    chain = [0, 1, 2, 0] if method is AdvantageMethod.TRACE else nodes
    return staged_advantages(TREE, chain[: len(nodes)], rewards, method, rollouts=rollouts).advantage


@pytest.mark.parametrize("method", list(AdvantageMethod))
@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_equal_rewards_give_exact_zeros(method: AdvantageMethod, reward: float) -> None:
    """All but those of `posterior`, whose values say how much was seen below each prefix: it is its definition."""
    found = advantages(method, NODES, [reward] * 4)
    if method is AdvantageMethod.POSTERIOR:
        assert np.abs(found).max() < 0.1
    else:
        np.testing.assert_array_equal(found, np.zeros(4))


@pytest.mark.parametrize("method", sorted(set(AdvantageMethod) - BINARY_ONLY))
def test_rewards_alike_up_to_float_dust_give_exact_zeros(method: AdvantageMethod) -> None:
    assert 0.1 + 0.2 != 0.3
    found = advantages(method, NODES, [0.1 + 0.2, 0.3, 0.3, 0.1 + 0.2])
    np.testing.assert_array_equal(found, np.zeros(4))


@pytest.mark.parametrize("method", list(AdvantageMethod))
def test_a_group_of_one_teaches_nothing_and_is_finite(method: AdvantageMethod) -> None:
    np.testing.assert_array_equal(advantages(method, [1], [1.0]), [0.0])


def test_a_step_without_signal_moves_no_weight(model: Path) -> None:
    quiet = learner(model)
    quiet.step(batch(row(2, 1.0), row(5, -1.0)))  # momentum
    before = [weight.detach().clone() for weight in quiet.policy.trainable]
    metrics = quiet.step(replace(batch(row(2, 0.0), row(5, 0.0)), number=1))
    assert metrics["learner/loss"] == 0.0
    assert all(map(torch.equal, quiet.policy.trainable, before))


@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        ("rollout.temperature", 1e-3, "at least 0.01, vLLM's lowest"),  # it would be clipped there
        ("learner.optimizer.learning_rate", math.inf, "positive and finite"),
        ("learner.optimizer.weight_decay", math.inf, "must be 0 or more"),
        ("learner.lora.alpha", math.inf, "positive and finite"),
        ("learner.lora.alpha", math.nan, "positive and finite"),
    ],
)
def test_a_number_that_no_step_survives_is_refused_by_its_name(
    tmp_path: Path, setting: str, value: float, told: str
) -> None:
    flags = {"store": tmp_path, "output": tmp_path / "run", setting: value}
    with pytest.raises(ConfigError, match=told) as error:
        load_config(TrainConfig, file=None, flags=flags)
    assert setting.rpartition(".")[2] in str(error.value)
    assert "\n" not in str(error.value)
