"""The learner's gradient is the policy gradient, however the batch is cut up, and its state survives a restart."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.gradients import step
from tests.tiny_models import VOCABULARY, random_qwen2
from treeopo.errors import ModelError
from treeopo.learner.learner import Learner
from treeopo.learner.logprobs import token_logprobs
from treeopo.learner.losses.policy_gradient import PolicyGradient
from treeopo.learner.policy import LoraPolicy, load_base
from treeopo.learner.settings import Aggregation, LearnerSettings, LoraSettings, OptimizerSettings
from treeopo.records import TrainBatch, TrainSequence

LORA = LoraSettings(rank=4, alpha=8, dropout=0.0)
SETTINGS = LearnerSettings(lora=LORA, optimizer=OptimizerSettings(learning_rate=1e-2), correction="none")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_qwen2(tmp_path_factory.mktemp("models") / "qwen2")


def policy(model: Path, dtype: torch.dtype = torch.float64, lora: LoraSettings = LORA) -> LoraPolicy:
    torch.manual_seed(1)
    loaded = LoraPolicy.load(str(model), lora, dtype=dtype, device=torch.device("cpu"))
    for name, parameter in loaded.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)  # a fresh adapter is zero, which would hide mistakes
    return loaded.__class__(loaded.model.to(dtype)) if dtype == torch.float64 else loaded


def batch(number: int = 0, rows: int = 7) -> TrainBatch:
    random = np.random.default_rng(number)
    sequences = []
    for _ in range(rows):
        prefix, completion = int(random.integers(1, 9)), int(random.integers(1, 12))
        sequences.append(
            TrainSequence(
                token_ids=random.integers(0, VOCABULARY, prefix + completion).astype(np.int32),
                prefix_length=prefix,
                advantages=np.full(completion, random.normal(), dtype=np.float32),
                behaviour_logprobs=np.log(random.uniform(0.01, 0.1, completion)).astype(np.float32),
                versions=np.full(completion, number, dtype=np.int32),
            )
        )
    return TrainBatch(number, tuple(sequences), {})


def with_advantage(row: TrainSequence, advantage: float) -> TrainSequence:
    return replace(row, advantages=np.full_like(row.advantages, advantage))


def plain_gradient(model: Path, rows: TrainBatch, aggregation: Aggregation) -> list[Tensor]:
    """One sequence at a time through transformers and PEFT, straight from the formula (Tree-OPO §3.4)."""
    adapted = policy(model)
    completion_tokens = sum(len(row.behaviour_logprobs) for row in rows.sequences)
    loss = torch.zeros((), dtype=torch.float64)
    for row in rows.sequences:
        ids = torch.as_tensor(row.token_ids, dtype=torch.long)[None]
        logprobs = torch.log_softmax(adapted.model(input_ids=ids).logits[0].double(), dim=-1)
        chosen = [logprobs[t - 1, ids[0, t]] for t in range(row.prefix_length, ids.shape[1])]
        scale = {
            "sum": 1 / len(rows.sequences),
            "sequence-mean": 1 / len(rows.sequences) / len(chosen),
            "token-mean": 1 / completion_tokens,
        }[aggregation]
        loss = loss - scale * float(row.advantages[0]) * torch.stack(chosen).sum()
    return list(torch.autograd.grad(loss, adapted.trainable))


def gradient(model: Path, settings: LearnerSettings, rows: TrainBatch) -> list[Tensor]:
    return step(Learner(policy(model), [PolicyGradient(settings)], settings, steps=10, temperature=1.0), rows)[0]


@pytest.mark.parametrize("aggregation", ["sum", "sequence-mean", "token-mean"])
@pytest.mark.parametrize("budget", [1, 40, 10_000])
def test_the_gradient_is_the_policy_gradient_whatever_the_micro_batches(
    model: Path, aggregation: Aggregation, budget: int
) -> None:
    unclipped = OptimizerSettings(max_grad_norm=1e9)
    settings = replace(SETTINGS, aggregation=aggregation, microbatch_tokens=budget, optimizer=unclipped)
    for ours, plain in zip(
        gradient(model, settings, batch()), plain_gradient(model, batch(), aggregation), strict=True
    ):
        torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-9)


def test_prefix_tokens_carry_no_gradient(model: Path) -> None:
    """A sequence whose completion is one token moves only what that token's prediction depends on."""
    adapted = policy(model)
    ids = torch.tensor([[3, 4, 5, 6]])
    hidden = adapted.hidden_states(ids, torch.ones_like(ids))
    hidden.retain_grad()
    token_logprobs(hidden[:, :-1].flatten(0, 1)[torch.tensor([2])], adapted.head, ids[0, 3:], 1.0).sum().backward()
    assert hidden.grad is not None
    assert hidden.grad[0, 2].abs().sum() > 0
    assert hidden.grad[0, [0, 1, 3]].abs().sum() == 0


def test_a_step_raises_the_probability_of_rewarded_completions(model: Path) -> None:
    rows = batch(rows=4)
    good = with_advantage(rows.sequences[0], 1.0)
    bad = with_advantage(rows.sequences[1], -1.0)
    learner = Learner(policy(model, torch.float32), [PolicyGradient(SETTINGS)], SETTINGS, steps=10, temperature=1.0)

    def logprob(row: TrainSequence) -> float:
        with torch.no_grad():
            ids = torch.as_tensor(row.token_ids, dtype=torch.long)[None]
            logits = learner.policy.model(input_ids=ids).logits[0, row.prefix_length - 1 : -1]
            return float(torch.log_softmax(logits, -1).gather(1, ids[0, row.prefix_length :, None]).sum())

    before = logprob(good), logprob(bad)
    learner.step(TrainBatch(0, (good, bad), {}))
    assert logprob(good) > before[0]
    assert logprob(bad) < before[1]


def test_a_batch_without_any_advantage_changes_nothing(model: Path) -> None:
    learner = Learner(policy(model, torch.float32), [PolicyGradient(SETTINGS)], SETTINGS, steps=10, temperature=1.0)
    before = [parameter.clone() for parameter in learner.policy.trainable]
    rows = tuple(with_advantage(row, 0.0) for row in batch().sequences)
    metrics = learner.step(TrainBatch(0, rows, {}))
    assert metrics["learner/grad_norm"] == 0
    assert all(torch.equal(a, b) for a, b in zip(before, learner.policy.trainable, strict=True))


def test_a_batch_out_of_order_is_a_bug(model: Path) -> None:
    learner = Learner(policy(model, torch.float32), [PolicyGradient(SETTINGS)], SETTINGS, steps=10, temperature=1.0)
    with pytest.raises(AssertionError, match="batch 1 reached a learner at version 0"):
        learner.step(batch(1))


def test_a_resumed_learner_is_bit_identical_to_one_that_never_stopped(model: Path, tmp_path: Path) -> None:
    """Dropout included: the random state travels with the checkpoint."""
    settings = replace(SETTINGS, lora=replace(LORA, dropout=0.2))

    def fresh(adapter: Path | None = None) -> Learner:
        torch.manual_seed(5)
        loaded = LoraPolicy.load(
            str(model), settings.lora, dtype=torch.float32, device=torch.device("cpu"), adapter=adapter
        )
        return Learner(loaded, [PolicyGradient(settings)], settings, steps=6, temperature=1.0)

    whole = fresh()
    for number in range(3):
        whole.step(batch(number))
    whole.save_state(tmp_path)
    for number in range(3, 6):
        whole.step(batch(number))
    resumed = fresh(tmp_path / "adapter")
    resumed.load_state(tmp_path)
    assert resumed.version == 3
    for number in range(3, 6):
        resumed.step(batch(number))
    assert all(torch.equal(a, b) for a, b in zip(whole.policy.trainable, resumed.policy.trainable, strict=True))


def test_merged_weights_over_the_base_are_the_adapted_model(model: Path, tmp_path: Path) -> None:
    adapted = policy(model, torch.float32)
    adapted.save_merged(tmp_path / "policy.safetensors")
    merged = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    weights = load_file(tmp_path / "policy.safetensors")
    missing, unexpected = merged.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) == {"model.embed_tokens.weight", "lm_head.weight"}
    ids = torch.arange(10)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, adapted.model.eval()(ids).logits, rtol=1e-4, atol=1e-5)
    assert not list(tmp_path.glob("*.partial"))


def test_the_saved_adapter_is_peft_s_own_format(model: Path, tmp_path: Path) -> None:
    adapted = policy(model, torch.float32)
    adapted.save_adapter(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        loaded = PeftModel.from_pretrained(base, str(tmp_path)).eval()(ids).logits
        torch.testing.assert_close(loaded, adapted.model.eval()(ids).logits)


def test_adapter_weights_stay_float32_over_a_bfloat16_base(model: Path) -> None:
    loaded = LoraPolicy.load(str(model), LORA, dtype=torch.bfloat16, device=torch.device("cpu"))
    assert {parameter.dtype for parameter in loaded.trainable} == {torch.float32}
    assert loaded.head.weight.dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")  # peft, of what is then refused
@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_an_adapter_that_could_not_be_published_is_refused(model: Path, target: str) -> None:
    with pytest.raises(ModelError, match="cannot be published"):
        policy(model, torch.float32, replace(LORA, target_modules=f".*{target}"))


def test_a_model_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded") as error:
        load_base(str(tmp_path / "nothing"), torch.float32)
    assert "\n" not in str(error.value)
