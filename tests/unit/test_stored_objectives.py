"""Cross-entropy is transformers' own loss; direct value optimisation is its formula and reaches its optimum."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from tests import gradients
from tests.tiny_models import VOCABULARY, random_qwen2
from treeopo.learner.learner import Learner
from treeopo.learner.losses import Forward, Loss
from treeopo.learner.losses.cross_entropy import CrossEntropy
from treeopo.learner.losses.direct_value import DirectValue
from treeopo.learner.microbatch import MicroBatch, micro_batches
from treeopo.learner.policy import LoraPolicy
from treeopo.learner.settings import LearnerSettings, LoraSettings, OptimizerSettings
from treeopo.records import TokenColumn, TrainBatch, TrainSequence

BETA = 0.1
SETTINGS = LearnerSettings(
    lora=LoraSettings(rank=4, alpha=8, dropout=0.0), optimizer=OptimizerSettings(max_grad_norm=1e9)
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_qwen2(tmp_path_factory.mktemp("models") / "qwen2")


def policy(model: Path) -> LoraPolicy:
    """In float64, with an adapter that is not zero."""
    torch.manual_seed(1)
    loaded = LoraPolicy.load(str(model), SETTINGS.lora, dtype=torch.float64, device=torch.device("cpu"))
    for name, parameter in loaded.model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    return LoraPolicy(loaded.model.to(torch.float64))


def batch() -> TrainBatch:
    """Ragged sequences of ragged steps."""
    random = np.random.default_rng(0)
    rows = []
    for _ in range(7):
        prefix, completion = int(random.integers(1, 9)), int(random.integers(1, 12))
        starts = np.append(1, random.integers(0, 2, completion - 1)).astype(np.float32)
        gains = random.normal(size=completion)[np.cumsum(starts).astype(int) - 1]
        rows.append(
            TrainSequence(
                token_ids=random.integers(0, VOCABULARY, prefix + completion).astype(np.int32),
                prefix_length=prefix,
                advantages=np.ones(completion, np.float32),
                behaviour_logprobs=np.zeros(completion, np.float32),
                versions=np.zeros(completion, np.int32),
                extras={
                    TokenColumn.STEP_START: starts,
                    TokenColumn.GAIN: gains.astype(np.float32),
                    TokenColumn.REFERENCE: -random.uniform(1, 9, completion).astype(np.float32),
                },
            )
        )
    return TrainBatch(0, tuple(rows), {})


def step(model: Path, loss: Loss, budget: int) -> tuple[float, list[Tensor]]:
    """The loss that a step reports and the gradient it follows."""
    settings = replace(SETTINGS, microbatch_tokens=budget)
    seen, metrics = gradients.step(Learner(policy(model), [loss], settings, steps=10, temperature=1.0), batch())
    return metrics["learner/loss"], seen


@pytest.mark.parametrize("budget", [1, 40, 10_000])
def test_cross_entropy_is_transformers_own_loss(model: Path, budget: int) -> None:
    adapted = policy(model)
    rows = batch().sequences
    width = max(len(row.token_ids) for row in rows)
    ids, labels, mask = torch.zeros(7, width, dtype=torch.long), torch.full((7, width), -100), torch.zeros(7, width)
    for index, row in enumerate(rows):
        tokens = torch.as_tensor(row.token_ids, dtype=torch.long)
        ids[index, : len(tokens)] = tokens
        labels[index, row.prefix_length : len(tokens)] = tokens[row.prefix_length :]
        mask[index, : len(tokens)] = 1
    own = adapted.model(input_ids=ids, attention_mask=mask, labels=labels).loss
    expected = torch.autograd.grad(own, adapted.trainable)
    loss, gradient = step(model, CrossEntropy(), budget)
    assert loss == pytest.approx(own.item(), rel=1e-6)
    for ours, theirs in zip(gradient, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("budget", [1, 40, 10_000])
def test_direct_value_is_its_formula_step_by_step(model: Path, budget: int) -> None:
    adapted = policy(model)
    squares = []
    for row in batch().sequences:
        ids = torch.as_tensor(row.token_ids, dtype=torch.long)
        logprobs = torch.log_softmax(adapted.model(input_ids=ids[None]).logits[0], dim=-1)
        starts = [*np.flatnonzero(row.extras[TokenColumn.STEP_START]).tolist(), row.completion_length]
        for begin, end in itertools.pairwise(starts):
            ratio = torch.zeros((), dtype=torch.float64)
            for token in range(begin, end):
                place = row.prefix_length + token
                ratio = ratio + logprobs[place - 1, ids[place]] - float(row.extras[TokenColumn.REFERENCE][token])
            squares.append((BETA * ratio - float(row.extras[TokenColumn.GAIN][begin])) ** 2)
    mean = torch.stack(squares).mean()
    expected = torch.autograd.grad(mean, adapted.trainable)
    loss, gradient = step(model, DirectValue(BETA), budget)
    assert loss == pytest.approx(mean.item(), rel=1e-5)
    for ours, slow in zip(gradient, expected, strict=True):
        torch.testing.assert_close(ours, slow, rtol=1e-4, atol=1e-7)


def test_the_metrics_of_a_part_of_a_batch_are_means_over_that_part(model: Path) -> None:
    """A process of a team begins with the whole batch and sees its share."""
    whole, part = batch(), replace(batch(), sequences=batch().sequences[:1])
    found = []
    for begun in (whole, part):
        objective = DirectValue(beta=0.1)
        objective.begin(begun)
        for micro in micro_batches(list(part.sequences), 1000, torch.device("cpu")):
            objective.loss(micro, forward(micro, torch.zeros_like(micro.advantage_C)))
        found.append(objective.metrics())
    assert found[0] == found[1]
    assert found[0]["learner/value_error"] > 0


def test_direct_value_reaches_its_closed_form_optimum() -> None:
    """A decision process of two steps of three actions. Where the values are those that the reference's own soft
    look-ahead gives, V(s) = beta log sum_a pi_ref(a | s) exp(V(s') / beta), the optimum is a policy and loss 0.
    """
    torch.manual_seed(0)
    reference = torch.log_softmax(torch.randn(4, 3, dtype=torch.float64), dim=-1)  # the root, then its three children
    leaf = torch.rand(3, 3, dtype=torch.float64)
    child = BETA * torch.logsumexp(reference[1:] + leaf / BETA, dim=-1)
    root = BETA * torch.logsumexp(reference[0] + child / BETA, dim=-1)
    gain = torch.cat([(child - root)[None], leaf - child[:, None]])
    state = torch.tensor([[0, 1 + first] for first in range(3) for _ in range(3)]).flatten()
    action = torch.tensor([[first, second] for first in range(3) for second in range(3)]).flatten()
    rows = tuple(
        TrainSequence(
            token_ids=np.array([0, *action[2 * index : 2 * index + 2]], np.int32),
            prefix_length=1,
            advantages=np.ones(2, np.float32),
            behaviour_logprobs=np.zeros(2, np.float32),
            versions=np.zeros(2, np.int32),
            extras={
                TokenColumn.STEP_START: np.ones(2, np.float32),
                TokenColumn.GAIN: gain[state, action][2 * index : 2 * index + 2].numpy(),
                TokenColumn.REFERENCE: reference[state, action][2 * index : 2 * index + 2].numpy(),
            },
        )
        for index in range(9)
    )
    objective = DirectValue(BETA)
    logits = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16)
    (micro,) = micro_batches(rows, 1000, torch.device("cpu"))

    def closure() -> Tensor:
        optimizer.zero_grad()
        objective.begin(TrainBatch(0, rows, {}))
        loss = objective.loss(micro, forward(micro, torch.log_softmax(logits, -1)[state, action]))
        loss.backward()
        return loss

    optimizer.step(closure)
    assert objective.metrics()["learner/value_error"] < 1e-6
    torch.testing.assert_close(torch.log_softmax(logits, -1).detach(), reference + gain / BETA, rtol=1e-4, atol=1e-4)


def forward(micro: MicroBatch, logprobs_C: Tensor) -> Forward:
    return Forward(logprobs_C, logprobs_C.detach(), torch.zeros(len(logprobs_C), 1), nn.Identity())


@pytest.mark.parametrize("budget", [1, 40, 10_000])
def test_reference_log_probabilities_are_the_base_model_s_in_the_order_asked(model: Path, budget: int) -> None:
    adapted = policy(model)
    learner = Learner(adapted, [], replace(SETTINGS, microbatch_tokens=budget), steps=1, temperature=1.0)
    rows = batch().sequences
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    before = adapted.hidden_states(torch.arange(5)[None], torch.ones(1, 5, dtype=torch.long))
    for row, found in zip(rows, learner.reference_logprobs(rows), strict=True):
        ids = torch.as_tensor(row.token_ids, dtype=torch.long)
        with torch.no_grad():
            logprobs = torch.log_softmax(base(ids[None]).logits[0], -1)[:-1].gather(1, ids[1:, None])[:, 0]
        np.testing.assert_allclose(found, logprobs[row.prefix_length - 1 :].numpy(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(adapted.hidden_states(torch.arange(5)[None], torch.ones(1, 5, dtype=torch.long)), before)
