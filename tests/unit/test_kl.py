"""Each KL estimate has the gradient of the divergence it is named after, by enumeration of a tiny vocabulary."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.gradients import step
from tests.tiny_models import random_qwen2
from tests.unit.test_learner import SETTINGS, batch, policy
from treeopo.learner import logprobs
from treeopo.learner.learner import Learner
from treeopo.learner.losses import SeparateLoss
from treeopo.learner.losses.kl import KlToTeacher, full_kl, score_coefficients
from treeopo.learner.policy import LoraPolicy
from treeopo.learner.settings import Aggregation, Direction, KlSettings, LearnerSettings, OptimizerSettings
from treeopo.learner.teacher import TeacherModel
from treeopo.records import TrainBatch

DIRECTIONS: tuple[Direction, ...] = ("reverse", "forward")
INFINITE = float("inf")
UNCLIPPED = OptimizerSettings(max_grad_norm=1e9)


def divergence(direction: Direction, policy: Tensor, teacher: Tensor) -> Tensor:
    """From the definition; rows of log-probabilities to one number a row."""
    first, second = (policy, teacher) if direction == "reverse" else (teacher, policy)
    return (first.exp() * (first - second)).sum(-1)


def distributions(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of a policy over six tokens, and log-probabilities of a teacher and of a policy a few steps older."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, generator=random, dtype=torch.float64).requires_grad_()
    teacher = torch.log_softmax(torch.randn(6, generator=random, dtype=torch.float64), -1)
    older = torch.log_softmax(logits.detach() + torch.randn(6, generator=random, dtype=torch.float64) / 3, -1)
    return logits, teacher, older


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("sampled_by", ["policy", "older policy", "teacher"])
@pytest.mark.parametrize("seed", range(3))
def test_the_sampled_estimate_has_the_gradient_of_its_divergence_whoever_sampled(
    direction: Direction, sampled_by: str, seed: int
) -> None:
    logits, teacher, older = distributions(seed)
    current = torch.log_softmax(logits, -1)
    behaviour = {"policy": current.detach(), "older policy": older, "teacher": teacher}[sampled_by]
    coefficient = score_coefficients(direction, current, behaviour, teacher, cap=INFINITE)
    (expected,) = torch.autograd.grad(divergence(direction, current, teacher), logits, retain_graph=True)
    (estimate,) = torch.autograd.grad((behaviour.exp() * coefficient * current).sum(), logits)
    torch.testing.assert_close(estimate, expected)


def test_where_policy_and_teacher_agree_no_token_has_a_gradient() -> None:
    current = torch.log_softmax(torch.randn(6), -1)
    for direction in DIRECTIONS:
        assert score_coefficients(direction, current, current, current, cap=10).abs().max() == 0


def test_differentiating_k3_would_descend_the_other_divergence() -> None:
    """Why the reverse estimate is not a differentiated k3, as GRPO's KL penalty is."""
    logits, teacher, _ = distributions(0)
    current = torch.log_softmax(logits, -1)
    ratio = teacher - current
    k3 = ratio.exp() - 1 - ratio
    (of_k3,) = torch.autograd.grad((current.detach().exp() * k3).sum(), logits, retain_graph=True)
    (reverse,) = torch.autograd.grad(divergence("reverse", current, teacher), logits, retain_graph=True)
    (forward,) = torch.autograd.grad(divergence("forward", current, teacher), logits)
    torch.testing.assert_close(of_k3, forward)
    assert (of_k3 - reverse).abs().max() > 0.01


def test_weights_are_cut_off_at_the_cap() -> None:
    current, behaviour = torch.tensor([0.0]), torch.tensor([-5.0])
    assert score_coefficients("reverse", current, behaviour, torch.tensor([-1.0]), cap=3.0).item() == 3.0
    assert score_coefficients("forward", behaviour, behaviour, current, cap=3.0).item() == 1 - 3.0


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_full_divergence_and_its_gradient_are_the_definition_s_across_chunks_and_padded_heads(
    direction: Direction, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", {"cpu": 4 * 5 * 7})  # chunks of 5
    rows = 13
    hidden = torch.randn(rows, 4, dtype=torch.float64).requires_grad_()
    teacher_hidden = torch.randn(rows, 5, dtype=torch.float64)
    head, teacher_head = torch.nn.Linear(4, 7, False).double(), torch.nn.Linear(5, 9, False).double()
    ours = full_kl(direction, hidden, head, teacher_hidden, teacher_head, temperature=0.8)
    plain = divergence(
        direction,
        torch.log_softmax(head(hidden) / 0.8, -1),
        torch.log_softmax(teacher_head(teacher_hidden)[:, :7], -1),
    )
    torch.testing.assert_close(ours, plain)
    (gradient,) = torch.autograd.grad(ours.square().sum(), hidden)
    (expected,) = torch.autograd.grad(plain.square().sum(), hidden)
    torch.testing.assert_close(gradient, expected)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A student and a teacher of one more layer."""
    folder = tmp_path_factory.mktemp("models")
    return random_qwen2(folder / "student"), random_qwen2(folder / "teacher", layers=3)


def gradient(adapted: LoraPolicy, settings: LearnerSettings, term: KlToTeacher, rows: TrainBatch) -> list[Tensor]:
    return step(Learner(adapted, [term], settings, steps=9, temperature=1.0), rows)[0]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("aggregation", "budget"), [("sum", 40), ("token-mean", 10_000)])
def test_the_learner_descends_beta_times_the_divergence_of_every_position(
    models: tuple[Path, Path], direction: Direction, aggregation: Aggregation, budget: int
) -> None:
    settings = replace(SETTINGS, aggregation=aggregation, microbatch_tokens=budget, optimizer=UNCLIPPED)
    kl = KlSettings(direction=direction, estimate="full", beta=0.3)
    teacher = TeacherModel(str(models[1]), settings)
    ours = gradient(policy(models[0]), settings, KlToTeacher(kl, settings, 1.0, teacher), batch())
    adapted = policy(models[0])
    loss = torch.zeros((), dtype=torch.float64)
    for row in batch().sequences:
        ids = torch.as_tensor(row.token_ids, dtype=torch.long)[None]
        of_policy = torch.log_softmax(adapted.model(input_ids=ids).logits[0, row.prefix_length - 1 : -1].double(), -1)
        with torch.no_grad():
            of_teacher = torch.log_softmax(
                teacher._model(input_ids=ids).logits[0, row.prefix_length - 1 : -1].double(), -1
            )
        loss = loss + 0.3 * divergence(direction, of_policy, of_teacher).sum()
    loss = loss / (7 if aggregation == "sum" else sum(row.completion_length for row in batch().sequences))
    for mine, theirs in zip(ours, torch.autograd.grad(loss, adapted.trainable), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_kl_alone_by_its_own_optimiser_brings_the_policy_nearer_to_the_teacher(
    models: tuple[Path, Path], direction: Direction
) -> None:
    kl = KlSettings(direction=direction, estimate="full")
    adapted = policy(models[0], torch.float32)
    term = KlToTeacher(kl, SETTINGS, 1.0, TeacherModel(str(models[1]), SETTINGS))
    own = SeparateLoss("kl", term, OptimizerSettings(learning_rate=1e-2), adapted.trainable)
    learner = Learner(adapted, [own], SETTINGS, steps=20, temperature=1.0)
    found = [learner.step(replace(batch(1), number=number))["learner/kl"] for number in range(8)]
    assert found[-1] < found[0]


@pytest.mark.parametrize("budget", [1, 10_000])
def test_a_teacher_s_scores_are_transformers_own_in_the_order_asked_for(models: tuple[Path, Path], budget: int) -> None:
    teacher = TeacherModel(str(models[1]), replace(SETTINGS, microbatch_tokens=budget))
    rows = batch().sequences
    scores = teacher.score([row.token_ids for row in rows], [row.prefix_length for row in rows])
    for row, score in zip(rows, scores, strict=True):
        ids = torch.as_tensor(row.token_ids, dtype=torch.long)[None]
        with torch.no_grad():
            logprobs = torch.log_softmax(teacher._model(input_ids=ids).logits[0].float(), -1)
        expected = logprobs[row.prefix_length - 1 : -1].gather(1, ids[0, row.prefix_length :, None])[:, 0]
        np.testing.assert_allclose(score, expected.numpy(), atol=1e-5)
