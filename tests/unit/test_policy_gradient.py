"""Micro-batches add up to the gradient of one big batch, in float64, under every aggregation and correction.

To 1e-6 of its norm and not to 1e-15, because transformers' RMSNorm computes in float32 whatever the model's type.
"""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import gradients
from tests.tiny_models import VOCABULARY, random_qwen2
from treeopo.learner.learner import Learner
from treeopo.learner.losses.policy_gradient import PolicyGradient
from treeopo.learner.policy import LoraPolicy
from treeopo.learner.settings import Aggregation, Correction, LearnerSettings, LoraSettings, OptimizerSettings
from treeopo.records import TrainBatch, TrainSequence

LORA = LoraSettings(rank=2, alpha=4, dropout=0.0)
SETTINGS = LearnerSettings(
    lora=LORA, optimizer=OptimizerSettings(max_grad_norm=1e9), clip_low=0.2, clip_high=0.28, microbatch_tokens=10_000
)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> LoraPolicy:
    path = random_qwen2(tmp_path_factory.mktemp("models") / "qwen2", layers=1)
    torch.manual_seed(1)
    loaded = LoraPolicy.load(str(path), LORA, dtype=torch.float64, device=torch.device("cpu"))
    for name, parameter in loaded.model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return LoraPolicy(loaded.model.double())


@pytest.fixture(scope="module")
def batch(policy: LoraPolicy) -> TrainBatch:
    """Nine ragged completions of a policy a little way off; one without advantage counts in the totals alone."""
    random = np.random.default_rng(0)
    rows = []
    for index in range(9):
        prefix, length = int(random.integers(1, 9)), int(random.integers(1, 12))
        ids = random.integers(0, VOCABULARY, prefix + length).astype(np.int32)
        with torch.no_grad():
            logits = policy.model(input_ids=torch.as_tensor(ids, dtype=torch.long)[None]).logits[0, prefix - 1 : -1]
        logprobs = torch.log_softmax(logits, -1).gather(1, torch.as_tensor(ids[prefix:], dtype=torch.long)[:, None])
        rows.append(
            TrainSequence(
                token_ids=ids,
                prefix_length=prefix,
                advantages=np.full(length, random.normal() if index else 0.0),
                behaviour_logprobs=(logprobs[:, 0].numpy() + random.normal(0, 0.5, length)).astype(np.float32),
                versions=np.zeros(length, np.int32),
            )
        )
    return TrainBatch(0, tuple(rows), {})


def gradient(policy: LoraPolicy, settings: LearnerSettings, batch: TrainBatch) -> tuple[Tensor, dict[str, float]]:
    """What the learner hands to its optimiser, flat, and the step's metrics."""
    learner = Learner(policy, [PolicyGradient(settings)], settings, steps=1, temperature=1.0)
    seen, metrics = gradients.gradient(learner, batch)
    return torch.cat([part.flatten() for part in seen]), metrics


@pytest.mark.parametrize("aggregation", get_args(Aggregation))
@pytest.mark.parametrize("correction", get_args(Correction))
def test_micro_batches_add_up_to_one_big_batch(
    policy: LoraPolicy, batch: TrainBatch, aggregation: Aggregation, correction: Correction
) -> None:
    settings = replace(SETTINGS, aggregation=aggregation, correction=correction)
    if correction == "geometric-mask":
        settings = replace(settings, correction_low=0.8, correction_high=1.3)  # these nine are far off-policy
    whole, metrics = gradient(policy, settings, batch)
    assert whole.abs().max() > 1e-5
    for budget in (1, 40):
        parts, in_parts = gradient(policy, replace(settings, microbatch_tokens=budget), batch)
        assert (parts - whole).norm() <= 1e-6 * whole.norm()
        for name in (
            "learner/loss",
            "learner/mismatch_kl",
            "learner/ess_share",
            "learner/weight_mean",
            "learner/limited_share",
            "learner/clip_share",
            "learner/log_ratio_max",
        ):
            assert in_parts[name] == pytest.approx(metrics[name], rel=1e-6), name


def test_the_aggregations_differ_by_their_divisors(policy: LoraPolicy, batch: TrainBatch) -> None:
    """sum: K. token-mean: all completion tokens. constant: K times a number that no sample decides."""
    tokens = sum(row.completion_length for row in batch.sequences)
    samples = len(batch.sequences)
    summed, _ = gradient(policy, SETTINGS, batch)
    mean, _ = gradient(policy, replace(SETTINGS, aggregation="token-mean"), batch)
    constant, _ = gradient(policy, replace(SETTINGS, aggregation="constant", constant_tokens=50), batch)
    assert (mean * tokens / samples - summed).norm() <= 1e-6 * summed.norm()
    assert (constant * 50 - summed).norm() <= 1e-6 * summed.norm()
