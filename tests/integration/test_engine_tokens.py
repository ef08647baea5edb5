"""What a real vLLM engine samples of a model whose head has rows that its tokenizer has no token for, and where it
ends."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from tests.hard_knocks.families import FAMILIES
from treeopo.engines.launch import start_engine
from treeopo.engines.settings import EngineOptions
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.records import Completion, FinishReason, Request

pytestmark = pytest.mark.engine

PADDING = 512


def padded(path: Path) -> ModelTokenizer:
    """Qwen2.5's ways in a random model whose head is two thirds padding, and more likely so than not."""
    tokenizer = FAMILIES[3].saved(path)
    tokens, ends = len(tokenizer.hf), sorted(tokenizer.end_token_ids)
    torch.manual_seed(0)
    small = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=tokens + PADDING, **small)).save_pretrained(path)
    GenerationConfig(eos_token_id=ends).save_pretrained(path)
    return ModelTokenizer(str(path))


async def test_padding_is_never_sampled_nor_scored_and_every_end_of_the_model_ends_a_completion(tmp_path: Path) -> None:
    tokenizer = padded(tmp_path / "model")
    tokens = len(tokenizer.hf)
    assert tokenizer.vocabulary_size >= tokens + PADDING
    engine = await start_engine(str(tmp_path / "model"), EngineOptions(max_model_tokens=512, dtype="float32"))
    try:
        prompt = tokenizer.begin("What is 2+3?\n\n")
        said: list[Completion] = [await engine.generate(Request(prompt, 400, seed, 1.0)) for seed in range(8)]
        scored = await engine.score(
            [np.array([*prompt, *one.token_ids], np.int32) for one in said], [len(prompt)] * len(said)
        )
    finally:
        await engine.close()
    for one, logprobs in zip(said, scored, strict=True):
        assert int(one.token_ids.max()) < tokens
        np.testing.assert_allclose(logprobs, one.logprobs, atol=1e-4)
        assert not tokenizer.end_token_ids & set(one.token_ids[:-1].tolist())
        ended = int(one.token_ids[-1]) in tokenizer.end_token_ids
        assert ended == (one.finish_reason is FinishReason.STOP)
    assert {int(one.token_ids[-1]) for one in said if not one.finish_reason.is_cut} == set(tokenizer.end_token_ids)
