"""Models that do not continue a text, or lack the weights to, are refused in a line before an engine is started."""

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForSequenceClassification,
    Qwen2Model,
    T5Config,
    T5ForConditionalGeneration,
)

from tests.adapters import command, evaluated, load
from tests.tiny_models import VOCABULARY, byte_tokenizer, random_qwen2, random_store
from treeopo.errors import ModelError

_QWEN2 = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": VOCABULARY - 1,
}
_T5 = {"d_model": 32, "d_ff": 32, "num_layers": 1, "num_heads": 1}
_BERT = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
_NOT = "no model that continues a text"
OTHERS: dict[str, tuple[Callable[[], PreTrainedModel], str]] = {
    "T5": (lambda: T5ForConditionalGeneration(T5Config(**_T5)), "an encoder with a decoder"),
    "BERT": (lambda: BertForMaskedLM(BertConfig(**_BERT)), f"{_NOT} .BertForMaskedLM."),
    "a reward model": (
        lambda: Qwen2ForSequenceClassification(Qwen2Config(**_QWEN2, num_labels=1)),
        f"{_NOT} .Qwen2ForSequenceClassification.",
    ),
    "an embedding model": (lambda: Qwen2Model(Qwen2Config(**_QWEN2)), f"{_NOT} .Qwen2Model."),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_model_that_does_not_continue_a_text_is_refused_by_every_command(tmp_path: Path, kind: str) -> None:
    make, complaint = OTHERS[kind]
    make().save_pretrained(tmp_path / "other")
    byte_tokenizer().save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match=f"model {tmp_path}/other: is {complaint}") as error:
        evaluated(tmp_path / "other")
    assert "\n" not in str(error.value)
    store = random_store(tmp_path / "trees.zarr", random_qwen2(tmp_path / "base"), problems=1)
    uses: dict[str, tuple[str | Path, ...]] = {
        "teacher": ("mcts", "build", "--teacher", tmp_path / "other", "-o", tmp_path / "new.zarr", "--limit", "1"),
        "student": ("train", store, "--student", tmp_path / "other", "--method", "sft", "-o", tmp_path / "run"),
    }
    for setting, words in uses.items():
        code, said = command(*words)
        assert (code, f"{setting} {tmp_path}/other: is" in said) == (2, True), said
    assert not (tmp_path / "new.zarr").exists()


def test_a_model_without_one_of_its_weights_is_not_given_a_random_one(tmp_path: Path) -> None:
    base = random_qwen2(tmp_path / "base", tied=False)
    weights = load_file(base / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks the tensor lm_head.weight of a causal"):
        load(base)


def test_a_head_that_is_the_embedding_is_not_missed(tmp_path: Path) -> None:
    base = random_qwen2(tmp_path / "base", tied=True)
    assert "lm_head.weight" not in load_file(base / "model.safetensors")
    policy = load(base)
    assert policy.head.weight is policy.model.get_base_model().get_input_embeddings().weight
