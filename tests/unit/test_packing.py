"""Packed sequences give the gradient of sequences run one by one, with and without shared prefixes, and no padding."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.gradients import step
from tests.tiny_models import VOCABULARY, random_qwen2
from treeopo.errors import ConfigError
from treeopo.learner.learner import Learner
from treeopo.learner.losses.policy_gradient import PolicyGradient
from treeopo.learner.microbatch import micro_batches
from treeopo.learner.packed_attention import padded_hidden_states
from treeopo.learner.packing import pack
from treeopo.learner.policy import LoraPolicy
from treeopo.learner.settings import Aggregation, LearnerSettings, LoraSettings, OptimizerSettings
from treeopo.records import IntArray, TrainBatch, TrainSequence

CPU = torch.device("cpu")
LORA = LoraSettings(rank=4, alpha=8, dropout=0.0)
SETTINGS = LearnerSettings(lora=LORA, optimizer=OptimizerSettings(max_grad_norm=1e9))


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_qwen2(tmp_path_factory.mktemp("models") / "qwen2")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": VOCABULARY}
    model = LlamaForCausalLM(LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **shape))
    path = tmp_path_factory.mktemp("models") / "llama"
    model.save_pretrained(path)
    return path


def policy(
    path: Path, dtype: torch.dtype = torch.float32, lora: LoraSettings = LORA, *, sharded: bool = False
) -> LoraPolicy:
    torch.manual_seed(1)
    loaded = LoraPolicy.load(str(path), lora, dtype=dtype, device=CPU, sharded=sharded)
    for name, parameter in loaded.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)  # a fresh adapter is zero, which would hide mistakes
    loaded.model.to(dtype)
    return loaded


def group_batch(seed: int = 0) -> TrainBatch:
    """Two groups of eight samples that start along one trace each, as the sampler draws them; some start alike."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(2):
        trace = random.integers(0, VOCABULARY, 40).astype(np.int32)
        for _ in range(8):
            prefix, completion = int(random.choice([12, 20, 29, 40])), int(random.integers(1, 25))
            tail = random.integers(0, VOCABULARY, completion).astype(np.int32)
            rows.append(
                TrainSequence(
                    token_ids=np.concatenate([trace[:prefix], tail]),
                    prefix_length=prefix,
                    advantages=np.full(completion, random.normal(), dtype=np.float32),
                    behaviour_logprobs=np.log(random.uniform(0.001, 0.01, completion)).astype(np.float32),
                    versions=np.zeros(completion, dtype=np.int32),
                    question_length=12,
                    prefix_is_solved=prefix == 29,
                )
            )
    return TrainBatch(0, tuple(rows), {})


def learner(path: Path, settings: LearnerSettings, dtype: torch.dtype = torch.float32) -> Learner:
    return Learner(policy(path, dtype), [PolicyGradient(settings)], settings, steps=10, temperature=1.0)


def distance(left: list[Tensor], right: list[Tensor]) -> float:
    """Relative, over the whole gradient."""
    ours, theirs = (torch.cat([part.flatten() for part in side]) for side in (left, right))
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("family", ["qwen2", "llama"])
@pytest.mark.parametrize("budget", [50, 10_000])
def test_sharing_prefixes_leaves_the_gradient_as_it_is(
    request: pytest.FixtureRequest, family: str, budget: int
) -> None:
    path = request.getfixturevalue(family)
    sharing = replace(SETTINGS, microbatch_tokens=budget, share_prefixes="on")
    shared, metrics = step(learner(path, sharing), group_batch())
    alone, unshared = step(learner(path, replace(SETTINGS, microbatch_tokens=1, share_prefixes="off")), group_batch())
    assert distance(shared, alone) < 1e-5
    assert metrics["learner/shared_share"] > (0.3 if budget > 50 else 0.1)
    assert unshared["learner/shared_share"] == 0
    for name in ("learner/entropy", "learner/prefix_logprob", "learner/prefix_logprob_per_token"):
        assert metrics[name] == pytest.approx(unshared[name], rel=1e-5), name


@pytest.mark.parametrize("aggregation", ["sum", "sequence-mean", "token-mean", "constant"])
@pytest.mark.parametrize("share", ["on", "off"])
def test_micro_batches_add_up_to_the_gradient_of_one_big_batch(
    qwen2: Path, aggregation: Aggregation, share: Literal["on", "off"]
) -> None:
    settings = replace(SETTINGS, aggregation=aggregation, share_prefixes=share)
    one, _ = step(learner(qwen2, replace(settings, microbatch_tokens=10**6), torch.float64), group_batch())
    many, _ = step(learner(qwen2, replace(settings, microbatch_tokens=60), torch.float64), group_batch())
    assert distance(many, one) < 1e-6


@pytest.mark.parametrize("share", ["on", "off"])
def test_no_token_run_through_a_model_that_packs_is_padding(qwen2: Path, share: Literal["on", "off"]) -> None:
    _, metrics = step(learner(qwen2, replace(SETTINGS, share_prefixes=share)), group_batch())
    assert metrics["learner/padding_share"] == 0


def test_a_model_that_does_not_pack_is_run_padded_with_the_same_result(qwen2: Path) -> None:
    adapted = policy(qwen2)
    (micro,) = micro_batches(group_batch().sequences, 10_000, CPU)
    packed = adapted.packed_hidden_states(micro.packing)
    padded = padded_hidden_states(adapted.model.get_base_model().get_decoder(), micro.packing)
    torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-5)


def windowed(path: Path) -> Path:
    """A random Gemma 2, every other layer of which sees a window."""
    shape = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "vocab_size": VOCABULARY,
        "head_dim": 8,
    }
    config = Gemma2Config(num_attention_heads=4, num_key_value_heads=2, final_logit_softcapping=None, **shape)
    Gemma2ForCausalLM(config).save_pretrained(path)
    return path


def test_models_with_attention_windows_do_not_pack_and_say_so_when_asked_to_share(tmp_path: Path) -> None:
    adapted = policy(windowed(tmp_path))
    assert not adapted.packs
    with pytest.raises(ConfigError, match="share_prefixes is on"):
        Learner(adapted, [], replace(SETTINGS, share_prefixes="on"), steps=1, temperature=1.0)
    unpacked = Learner(adapted, [PolicyGradient(SETTINGS)], SETTINGS, steps=10, temperature=1.0)
    assert step(unpacked, group_batch())[1]["learner/padding_share"] < 0.1


def test_gradient_checkpointing_leaves_the_gradient_as_it_is(qwen2: Path) -> None:
    plain, _ = step(learner(qwen2, SETTINGS), group_batch())
    checkpointed, _ = step(learner(qwen2, replace(SETTINGS, gradient_checkpointing=True)), group_batch())
    assert distance(checkpointed, plain) < 1e-6


def test_the_reference_is_the_base_model_and_the_adapter_returns_after_it(qwen2: Path) -> None:
    adapted, base = policy(qwen2), LoraPolicy.load(str(qwen2), LORA, dtype=torch.float32, device=CPU)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        before = adapted.model(ids).logits
        with adapted.reference():
            reference = adapted.model(ids).logits
        torch.testing.assert_close(reference, base.model(ids).logits)  # a fresh adapter is zero
        torch.testing.assert_close(adapted.model(ids).logits, before)
    assert not torch.allclose(reference, before)
    assert all(parameter.requires_grad for parameter in adapted.trainable)


rows_of_few_tokens = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=12).map(lambda ids: np.array(ids, dtype=np.int32)),
    min_size=1,
    max_size=12,
)


@given(rows=rows_of_few_tokens, share=st.booleans())
def test_a_packing_holds_each_sequence_and_each_distinct_prefix_once(rows: list[IntArray], share: bool) -> None:
    rows = sorted(rows, key=lambda row: row.tolist())
    packing, paths = pack(rows, share=share, device=CPU)
    for row, path in zip(rows, paths, strict=True):
        assert packing.tokens_U[path].tolist() == row.tolist()
        assert packing.positions_U[path].tolist() == list(range(len(row)))
    prefixes = [tuple(row[: end + 1].tolist()) for row in rows for end in range(len(row))]
    assert len(packing.tokens_U) == (len(set(prefixes)) if share else len(prefixes))


@given(rows=rows_of_few_tokens, share=st.booleans())
def test_what_is_spread_over_the_sequences_is_collected_again(rows: list[IntArray], share: bool) -> None:
    packing, _ = pack(rows, share=share, device=CPU)
    values = torch.arange(len(packing.tokens_U), dtype=torch.float32)[:, None]
    torch.testing.assert_close(packing.collect(packing.spread(values)), values)
    assert sum(grid.numel() for grid in packing.grids) <= packing.places / 0.9 + 1
