"""Loss and gradient of `grpo` are those of TRL 1.16's GRPOTrainer on the same tensors, where their settings meet.

TRL's loss types are our aggregations: grpo is sequence-mean, bnpo and dapo are token-mean, dr_grpo is constant. Its
clipped ratio against the sampling policy is our token-truncate without a cap and with a clip; its correction of the
engine's mismatch, mode token_truncate, is our token-truncate.
"""

from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from tests.gradients import gradient
from tests.tiny_models import VOCABULARY, random_qwen2
from treeopo.advantage import AdvantageMethod, staged_advantages
from treeopo.learner.learner import Learner
from treeopo.learner.losses.policy_gradient import PolicyGradient
from treeopo.learner.policy import LoraPolicy
from treeopo.learner.settings import Aggregation, LearnerSettings, LoraSettings, OptimizerSettings
from treeopo.records import TrainBatch, TrainSequence

GROUP, PROMPT, LONGEST = 4, 5, 8
LORA = LoraSettings(rank=2, alpha=4, dropout=0.0)
SETTINGS = LearnerSettings(lora=LORA, optimizer=OptimizerSettings(max_grad_norm=1e9), constant_tokens=LONGEST)
PAIRS: list[tuple[str, Aggregation]] = [
    ("grpo", "sequence-mean"),
    ("bnpo", "token-mean"),
    ("dapo", "token-mean"),
    ("dr_grpo", "constant"),
]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> LoraPolicy:
    path = random_qwen2(tmp_path_factory.mktemp("models") / "qwen2", layers=1)
    torch.manual_seed(1)
    loaded = LoraPolicy.load(str(path), LORA, dtype=torch.float32, device=torch.device("cpu"))
    for name, parameter in loaded.model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return loaded


@pytest.fixture(scope="module")
def batch(policy: LoraPolicy) -> TrainBatch:
    """A group of ragged completions of one prompt, sampled by a policy near this one, with GRPO's advantages."""
    random = np.random.default_rng(0)
    prompt = random.integers(0, VOCABULARY, PROMPT)
    rewards = [1.0, 0.0, 0.0, 0.0]
    advantages = staged_advantages([-1], [0] * GROUP, rewards, AdvantageMethod.GRPO).advantage
    rows = []
    for advantage, length in zip(advantages, (3, LONGEST, 1, 6), strict=True):
        ids = np.concatenate([prompt, random.integers(0, VOCABULARY, length)]).astype(np.int32)
        with torch.no_grad():
            logits = policy.model(input_ids=torch.as_tensor(ids, dtype=torch.long)[None]).logits[0, PROMPT - 1 : -1]
        chosen = torch.log_softmax(logits, -1).gather(1, torch.as_tensor(ids[PROMPT:], dtype=torch.long)[:, None])
        rows.append(
            TrainSequence(
                token_ids=ids,
                prefix_length=PROMPT,
                advantages=np.full(length, advantage, np.float32),
                behaviour_logprobs=(chosen[:, 0].numpy() + random.normal(0, 0.4, length)).astype(np.float32),
                versions=np.zeros(length, np.int32),
            )
        )
    return TrainBatch(0, tuple(rows), {})


@pytest.fixture(scope="module")
def trainer(policy: LoraPolicy, tmp_path_factory: pytest.TempPathFactory) -> GRPOTrainer:
    """TRL's trainer around the same model, for its loss alone: it neither generates nor steps."""
    path = tmp_path_factory.mktemp("trl")
    random_qwen2(path / "tokenizer", layers=1)
    trainer = GRPOTrainer(
        model=policy.model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=GRPOConfig(
            output_dir=str(path / "out"),
            per_device_train_batch_size=GROUP,
            num_generations=GROUP,
            max_completion_length=LONGEST,
            epsilon=0.2,
            epsilon_high=0.28,
            beta=0.0,
            use_cpu=True,
            bf16=False,
            report_to=[],
        ),
        train_dataset=Dataset.from_dict({"prompt": ["a"] * GROUP}),
        processing_class=AutoTokenizer.from_pretrained(path / "tokenizer"),
    )
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def trl_inputs(batch: TrainBatch) -> dict[str, Any]:
    rows = batch.sequences

    def padded(values: list[np.ndarray], kind: torch.dtype) -> Tensor:
        grid = torch.zeros(len(rows), LONGEST, dtype=kind)
        for index, value in enumerate(values):
            grid[index, : len(value)] = torch.as_tensor(value)
        return grid

    return {
        "prompt_ids": torch.as_tensor(np.stack([row.token_ids[:PROMPT] for row in rows]), dtype=torch.long),
        "prompt_mask": torch.ones(len(rows), PROMPT, dtype=torch.long),
        "completion_ids": padded([row.token_ids[PROMPT:] for row in rows], torch.long),
        "completion_mask": padded([np.ones(row.completion_length) for row in rows], torch.long),
        "advantages": torch.tensor([row.advantages[0] for row in rows]),
        "behaviour": padded([row.behaviour_logprobs for row in rows], torch.float32),
        "num_items_in_batch": torch.tensor(float(sum(row.completion_length for row in rows))),
    }


def theirs(trainer: GRPOTrainer, policy: LoraPolicy, inputs: dict[str, Any]) -> tuple[float, Tensor]:
    policy.model.zero_grad()
    loss = trainer.compute_loss(trainer.model.train(), inputs)
    return loss.item(), torch.cat([g.flatten() for g in torch.autograd.grad(loss, policy.trainable)])


def ours(policy: LoraPolicy, settings: LearnerSettings, batch: TrainBatch) -> tuple[float, Tensor]:
    seen, metrics = gradient(Learner(policy, [PolicyGradient(settings)], settings, steps=1, temperature=1.0), batch)
    return metrics["learner/loss"], torch.cat([part.flatten() for part in seen])


def assert_same(found: tuple[float, Tensor], expected: tuple[float, Tensor]) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-5, abs=1e-6)
    assert expected[1].norm() > 1e-4
    assert (found[1] - expected[1]).norm() <= 1e-4 * expected[1].norm()


def test_this_is_the_trl_that_was_read() -> None:
    assert version("trl").startswith("1.16.")


@pytest.mark.parametrize(("loss_type", "aggregation"), PAIRS)
def test_on_policy(
    trainer: GRPOTrainer, policy: LoraPolicy, batch: TrainBatch, loss_type: str, aggregation: Aggregation
) -> None:
    trainer.loss_type = loss_type
    found = ours(policy, replace(SETTINGS, aggregation=aggregation, correction="none"), batch)
    assert_same(found, theirs(trainer, policy, trl_inputs(batch)))


@pytest.mark.parametrize(("loss_type", "aggregation"), PAIRS)
def test_clipped_against_the_policy_that_sampled(
    trainer: GRPOTrainer, policy: LoraPolicy, batch: TrainBatch, loss_type: str, aggregation: Aggregation
) -> None:
    trainer.loss_type = loss_type
    inputs = trl_inputs(batch)
    settings = replace(SETTINGS, aggregation=aggregation, correction_high=float("inf"), clip_low=0.2, clip_high=0.28)
    unclipped = ours(policy, replace(settings, clip_low=None, clip_high=None), batch)
    clipped = ours(policy, settings, batch)
    assert (unclipped[1] - clipped[1]).norm() > 1e-2 * unclipped[1].norm()  # the clip does something here
    assert_same(clipped, theirs(trainer, policy, inputs | {"old_per_token_logps": inputs["behaviour"]}))


@pytest.mark.parametrize(("loss_type", "aggregation"), PAIRS)
def test_corrected_for_the_engine_by_truncated_weights(
    trainer: GRPOTrainer,
    policy: LoraPolicy,
    batch: TrainBatch,
    loss_type: str,
    aggregation: Aggregation,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trainer, "use_vllm", True)
    trainer.loss_type = loss_type
    inputs = trl_inputs(batch)
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    with torch.no_grad():
        old, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, LONGEST)
    weights = (old - inputs["behaviour"]).exp().clamp(max=1.2) * inputs["completion_mask"]
    settings = replace(SETTINGS, aggregation=aggregation, correction="token-truncate", correction_high=1.2)
    found = ours(policy, settings, batch)
    assert_same(found, theirs(trainer, policy, inputs | {"importance_sampling_ratio": weights}))
