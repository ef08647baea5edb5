"""What a step says of the prefixes it starts from, and learns from them if it is asked to, is what sequences run one by
one through transformers and PEFT say.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.gradients import step
from tests.tiny_models import VOCABULARY, random_qwen2
from tests.unit.test_packing import LORA, distance, policy, windowed
from treeopo.config import TrainConfig, load_config
from treeopo.errors import ConfigError
from treeopo.learner import prefix_sample
from treeopo.learner.learner import Learner
from treeopo.learner.losses import Loss
from treeopo.learner.losses.policy_gradient import PolicyGradient
from treeopo.learner.losses.prefix_likelihood import PrefixLikelihood
from treeopo.learner.prefix_sample import sample_prefixes
from treeopo.learner.settings import LearnerSettings, OptimizerSettings
from treeopo.recipes.losses import make_losses
from treeopo.records import TrainBatch, TrainSequence

SETTINGS = LearnerSettings(lora=LORA, correction="none", optimizer=OptimizerSettings(max_grad_norm=1e9))
QUESTION, WEIGHT = 8, 0.3
SHARES: list[Literal["on", "off"]] = ["on", "off"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_qwen2(tmp_path_factory.mktemp("models") / "qwen2")


@pytest.fixture
def all_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    """None is left out of the figures for what it costs."""
    monkeypatch.setattr(prefix_sample, "SHARE", 1e9)


def batch() -> TrainBatch:
    """Two problems with two traces each that part after a step; samples start at the question or along a trace, some
    more than once at the same place. One trace of each problem is solved.
    """
    random = np.random.default_rng(3)
    rows = []
    for _ in range(2):
        stem = random.integers(0, VOCABULARY, QUESTION + 6)
        traces = [np.concatenate([stem, random.integers(0, VOCABULARY, 15)]) for _ in range(2)]
        for sample in range(9):
            trace, prefix = sample % 2, QUESTION + int(random.choice([0, 6, 6, 13, 21]))
            length = int(random.integers(1, 12))
            ids = np.concatenate([traces[trace][:prefix], random.integers(0, VOCABULARY, length)])
            rows.append(
                TrainSequence(
                    token_ids=ids.astype(np.int32),
                    prefix_length=prefix,
                    advantages=np.full(length, random.normal() if sample > 2 else 0.0, np.float32),
                    behaviour_logprobs=np.full(length, -5.0, np.float32),
                    versions=np.zeros(length, np.int32),
                    question_length=QUESTION,
                    prefix_is_solved=trace == 0,
                )
            )
    return TrainBatch(0, tuple(rows), {})


def of_steps(model: torch.nn.Module, row: TrainSequence, temperature: float = 1.0) -> Tensor:
    """log pi of each step token of a prefix, one sequence alone."""
    ids = torch.as_tensor(row.token_ids, dtype=torch.long)[None, : row.prefix_length]
    logprobs = torch.log_softmax(model(input_ids=ids).logits[0].double() / temperature, -1)
    return logprobs[:-1].gather(1, ids[0, 1:, None])[QUESTION - 1 :, 0]


def learner(model: Path, settings: LearnerSettings, losses: Sequence[Loss], temperature: float = 1.0) -> Learner:
    return Learner(policy(model, torch.float64, settings.lora), losses, settings, steps=9, temperature=temperature)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("budget", [1, 60, 10_000])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_mean_log_probability_of_the_prefixes_is_that_of_sequences_run_one_by_one(
    model: Path, all_prefixes: None, share: Literal["on", "off"], budget: int, dropout: float
) -> None:
    """Each counted as often as it was drawn, at the rollout temperature and without dropout."""
    lora = replace(LORA, dropout=dropout)
    settings = replace(SETTINGS, microbatch_tokens=budget, share_prefixes=share, lora=lora)
    ours = learner(model, settings, [PolicyGradient(settings)], temperature=0.7)
    with torch.no_grad():
        plain = ours.policy.model.eval()
        rows = [row for row in batch().sequences if row.advantages.any()]
        sums = [of_steps(plain, row, 0.7).sum().item() for row in rows if row.step_tokens]
    metrics = ours.step(batch())
    assert len(sums) < len(rows) < len(batch().sequences)
    assert metrics["learner/prefix_logprob"] == pytest.approx(np.mean(sums), rel=1e-6)
    tokens = sum(row.step_tokens for row in rows)
    assert metrics["learner/prefix_logprob_per_token"] == pytest.approx(np.sum(sums) / tokens, rel=1e-6)
    assert "learner/prefix_loss" not in metrics


def test_a_model_that_does_not_pack_says_the_same_of_its_prefixes_however_they_are_run(
    tmp_path: Path, all_prefixes: None
) -> None:
    path = windowed(tmp_path)
    found = []
    for budget in (1, 10_000):
        settings = replace(SETTINGS, microbatch_tokens=budget)
        found.append(learner(path, settings, [PolicyGradient(settings)]).step(batch())["learner/prefix_logprob"])
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_a_batch_without_steps_has_no_figure_of_them(model: Path) -> None:
    at_the_root = [replace(row, prefix_length=QUESTION, question_length=QUESTION) for row in alike(6)]
    unknown = [replace(row, question_length=None) for row in batch().sequences]
    unwanted = [replace(row, advantages=np.zeros_like(row.advantages)) for row in batch().sequences]
    for rows in (at_the_root, unknown, unwanted):
        metrics = learner(model, SETTINGS, [PolicyGradient(SETTINGS)]).step(TrainBatch(0, tuple(rows), {}))
        assert not [name for name in metrics if "prefix" in name]


def alike(count: int, steps: int = 0) -> list[TrainSequence]:
    """Rows of a question, so many step tokens and 10 completion tokens."""
    ones = np.ones(10, np.float32)
    ids = np.zeros(QUESTION + steps + 10, np.int32)
    row = TrainSequence(ids, QUESTION + steps, ones, ones, ones.astype(np.int32), question_length=QUESTION)
    return [row] * count


def test_the_figure_is_of_so_many_prefixes_as_cost_a_hundredth_of_the_step_and_of_each_in_turn() -> None:
    """100 completion tokens by 4 (1 + 9) multiplications a weight of the head allow 20 step tokens, by 2."""
    rows = [*alike(2), *alike(8, steps=5)]

    def measured(number: int) -> list[int]:
        found = sample_prefixes(rows, number, body_per_head=9.0)
        assert [row.token_ids.size for row in found] == [row.token_ids.size for row in rows]
        return [index for index, row in enumerate(found) if row.step_tokens]

    assert measured(0) == [2, 4, 6, 8]
    assert measured(1) == [3, 5, 7, 9]
    assert measured(2) == measured(0)


def test_one_prefix_is_measured_whatever_it_costs_and_all_where_they_are_cheap() -> None:
    rows = alike(8, steps=50)
    assert sum(row.step_tokens > 0 for row in sample_prefixes(rows, 5, body_per_head=0.1)) == 1
    assert sample_prefixes(rows, 5, body_per_head=1e4) is rows
    assert list(sample_prefixes([], 0, body_per_head=1.0)) == []


def plain_gradient(model: Path, weight: float) -> tuple[list[Tensor], float]:
    """Of policy gradient and prefix likelihood, straight from the formulas; and the mean of the second, unweighted."""
    adapted, rows = policy(model, torch.float64), batch().sequences
    loss = torch.zeros((), dtype=torch.float64)
    for row in rows:
        ids = torch.as_tensor(row.token_ids, dtype=torch.long)[None]
        logprobs = torch.log_softmax(adapted.model(input_ids=ids).logits[0].double(), -1)
        chosen = logprobs[row.prefix_length - 1 : -1].gather(1, ids[0, row.prefix_length :, None])
        loss = loss - float(row.advantages[0]) * chosen.sum() / len(rows)
    solved = torch.cat([of_steps(adapted.model, row) for row in rows if row.prefix_is_solved])
    return list(torch.autograd.grad(loss - weight * solved.mean(), adapted.trainable)), -solved.mean().item()


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("budget", [1, 60, 10_000])
def test_prefixes_on_a_solved_trace_are_learned_beside_the_policy_gradient(
    model: Path, share: Literal["on", "off"], budget: int
) -> None:
    """Those of sequences whose advantage is zero too, and each as often as it was drawn."""
    settings = replace(SETTINGS, microbatch_tokens=budget, share_prefixes=share, prefix_loss=WEIGHT)
    losses: list[Loss] = [PolicyGradient(settings), PrefixLikelihood(WEIGHT)]
    gradient, metrics = step(learner(model, settings, losses), batch())
    plain, likelihood = plain_gradient(model, WEIGHT)
    assert distance(gradient, plain) < 1e-6
    assert metrics["learner/prefix_loss"] == pytest.approx(likelihood, rel=1e-6)
    assert distance(plain_gradient(model, 0.0)[0], plain) > 0.1


def test_only_prefixes_on_a_solved_trace_with_a_step_are_wanted() -> None:
    loss, (row, *_) = PrefixLikelihood(WEIGHT), alike(1, steps=3)
    assert not loss.wants(row)
    assert loss.wants(replace(row, prefix_is_solved=True))
    assert not loss.wants(replace(alike(1)[0], prefix_is_solved=True))
    assert not loss.begin(TrainBatch(0, (row,), {}))
    assert loss.begin(TrainBatch(0, (replace(row, prefix_is_solved=True),), {}))
    assert loss.metrics() == {}


def test_a_batch_without_solved_prefixes_is_learned_by_its_advantages_alone(model: Path) -> None:
    rows = tuple(replace(row, prefix_is_solved=False) for row in batch().sequences)
    settings = replace(SETTINGS, prefix_loss=WEIGHT)
    losses: list[Loss] = [PolicyGradient(settings), PrefixLikelihood(WEIGHT)]
    gradient, metrics = step(learner(model, settings, losses), TrainBatch(0, rows, {}))
    assert distance(gradient, plain_gradient(model, 0.0)[0]) < 1e-6
    assert "learner/prefix_loss" not in metrics


def config(method: str, **flags: object) -> TrainConfig:
    return load_config(TrainConfig, file=None, flags={"output": "run", "method": method, **flags})


@pytest.mark.parametrize(
    ("method", "sampling"), [("grpo", None), ("sft", None), ("dvo", None), ("actor-critic", None), ("tree-opo", "root")]
)
def test_a_method_without_prefixes_or_a_policy_gradient_refuses_to_learn_them(
    method: str, sampling: str | None
) -> None:
    with pytest.raises(ConfigError, match=r"learner\.prefix_loss is 0\.001; it needs a policy gradient") as error:
        config(method, **{"learner.prefix_loss": 0.001, "rollout.sampling": sampling})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("weight", [-0.1, float("inf"), float("nan")])
def test_a_weight_that_is_no_weight_is_refused(weight: float) -> None:
    with pytest.raises(ConfigError, match=r"learner\.prefix_loss is .*must be 0 or more"):
        LearnerSettings(prefix_loss=weight)


@pytest.mark.parametrize("method", ["tree-opo", "tree-opo-replay"])
def test_the_loss_is_there_where_it_is_asked_for(model: Path, method: str) -> None:
    adapted = policy(model)
    assert [type(loss) for loss in make_losses(config(method), None, adapted)] == [PolicyGradient]
    asked = make_losses(config(method, **{"learner.prefix_loss": 0.001}), None, adapted)
    assert [type(loss) for loss in asked] == [PolicyGradient, PrefixLikelihood]
