"""Supervised training: the loss is that of completion tokens alone, however the batch was padded or ordered."""

import copy
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen2ForCausalLM

from tests.tiny_models import random_qwen2
from treeopo.errors import ConfigError
from treeopo.learner.supervised import (
    IGNORED,
    Example,
    SupervisedSettings,
    collate,
    length_buckets,
    supervised_step,
    train_supervised,
)

PAD = 256
EXAMPLES = [Example([1] * n, [2, 3, n, 4][: 1 + n % 4]) for n in range(1, 21)]
FLOAT32 = SupervisedSettings(steps=1, batch_size=4, learning_rate=1e-3, bf16_autocast=False)


@pytest.fixture(scope="module")
def initial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_qwen2(tmp_path_factory.mktemp("model"))


@pytest.fixture
def model(initial: Path) -> Qwen2ForCausalLM:
    return Qwen2ForCausalLM.from_pretrained(initial, dtype=torch.float32)


def completion_loss(model: Qwen2ForCausalLM, example: Example) -> torch.Tensor:
    """Sum over the completion's tokens of -log p, from the plain definition: no batch, no padding."""
    ids = torch.tensor([[*example.prompt_ids, *example.completion_ids]])
    logprobs = torch.log_softmax(model(ids).logits[0], dim=-1)
    first = len(example.prompt_ids)
    return -torch.stack([logprobs[place - 1, ids[0, place]] for place in range(first, len(example))]).sum()


def test_the_loss_is_the_mean_over_completion_tokens(model: Qwen2ForCausalLM) -> None:
    batch = EXAMPLES[2:9]
    tokens = sum(len(example.completion_ids) for example in batch)
    expected = torch.stack([completion_loss(model, example) for example in batch]).sum() / tokens
    loss = supervised_step(model, torch.optim.SGD(model.parameters(), lr=0.0), collate(batch, PAD), FLOAT32)
    assert loss == pytest.approx(expected.item(), abs=1e-5)


def test_the_gradient_is_that_of_the_unpadded_examples(model: Qwen2ForCausalLM) -> None:
    batch, reference = EXAMPLES[2:9], copy.deepcopy(model)
    tokens = sum(len(example.completion_ids) for example in batch)
    (torch.stack([completion_loss(reference, example) for example in batch]).sum() / tokens).backward()
    unclipped = SupervisedSettings(steps=1, batch_size=4, learning_rate=1e-3, clip_norm=1e9, bf16_autocast=False)
    supervised_step(model, torch.optim.SGD(model.parameters(), lr=0.0), collate(batch, PAD), unclipped)
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4)


def test_gradients_are_clipped(model: Qwen2ForCausalLM) -> None:
    tight = SupervisedSettings(steps=1, batch_size=4, learning_rate=1e-3, clip_norm=1e-3, bf16_autocast=False)
    supervised_step(model, torch.optim.SGD(model.parameters(), lr=0.0), collate(EXAMPLES, PAD), tight)
    norm = torch.linalg.vector_norm(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert norm.item() == pytest.approx(1e-3, rel=1e-2)


def test_labels_stand_on_completions_alone() -> None:
    batch = collate([Example([7, 8], [9]), Example([7], [5, 6, 4])], PAD)
    assert batch.ids_B_T.tolist() == [[7, 8, 9, PAD], [7, 5, 6, 4]]
    assert batch.labels_B_T.tolist() == [[IGNORED, IGNORED, 9, IGNORED], [IGNORED, 5, 6, 4]]


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_every_epoch_holds_each_example_once(batch_size: int) -> None:
    batches = -(-len(EXAMPLES) // batch_size)
    epochs = length_buckets(EXAMPLES, batch_size, seed=3)
    for _ in range(3):
        epoch = [example for batch in islice(epochs, batches) for example in batch]
        assert Counter(map(id, epoch)) == Counter(map(id, EXAMPLES))


def test_buckets_pad_less_than_a_plain_shuffle() -> None:
    examples = [Example([1] * (1 + 37 * n % 101), [2]) for n in range(1024)]
    real = sum(map(len, examples))
    padded = sum(collate(batch, PAD).ids_B_T.numel() for batch in islice(length_buckets(examples, 32, seed=0), 32))
    assert padded < 1.1 * real


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(model: Qwen2ForCausalLM) -> None:
    def trained(seed: int) -> list[float]:
        settings = SupervisedSettings(steps=4, batch_size=4, learning_rate=1e-2, seed=seed)
        fresh = copy.deepcopy(model)
        train_supervised(fresh, EXAMPLES, settings, PAD)
        return [parameter.sum().item() for parameter in fresh.parameters()]

    assert trained(1) == trained(1)
    assert trained(1) != trained(2)


def test_training_leaves_global_randomness_and_mode_alone(model: Qwen2ForCausalLM) -> None:
    before = torch.random.get_rng_state()
    train_supervised(model.eval(), EXAMPLES, SupervisedSettings(steps=2, batch_size=4, learning_rate=1e-3), PAD)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not model.training


def test_training_learns_its_examples(model: Qwen2ForCausalLM) -> None:
    examples = [Example([n, 100], [n + 50, 101]) for n in range(8)]
    steps: list[int] = []
    losses: list[float] = []

    def note(step: int, loss: float) -> None:
        steps.append(step)
        losses.append(loss)

    settings = SupervisedSettings(steps=60, batch_size=8, learning_rate=1e-2)
    tail = train_supervised(model, examples, settings, PAD, note)
    assert steps == list(range(1, 61))
    assert losses[0] > 2
    assert tail < 0.1


def test_only_the_adapter_of_a_peft_model_is_trained(model: Qwen2ForCausalLM) -> None:
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    before = {name: parameter.clone() for name, parameter in adapted.named_parameters()}
    train_supervised(adapted, EXAMPLES, SupervisedSettings(steps=2, batch_size=4, learning_rate=1e-2), PAD)
    moved = {name for name, parameter in adapted.named_parameters() if not torch.equal(before[name], parameter)}
    assert moved
    assert all("lora_" in name for name in moved)


@pytest.mark.parametrize(
    "change", [{"steps": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"clip_norm": -1.0}, {"warmup": 1.5}]
)
def test_impossible_settings_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="supervised training"):
        replace(SupervisedSettings(steps=1, batch_size=1, learning_rate=1e-3), **change)  # type: ignore[arg-type]


def test_nothing_to_learn_from_is_refused() -> None:
    with pytest.raises(ConfigError, match="no examples"):
        next(length_buckets([], 4, seed=0))
    with pytest.raises(ConfigError, match="at least one token each"):
        Example([1], [])
