"""Random models of real architectures, small enough to make in a test."""

from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

VOCABULARY = 64


def random_qwen2(
    directory: Path, *, vocabulary: int = VOCABULARY, layers: int = 2, dtype: torch.dtype = torch.float32
) -> Path:
    """Save a Qwen2 of a few thousand parameters with tied embeddings and biased attention, as Qwen2.5-1.5B has them."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
    )
    model = Qwen2ForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)  # transformers starts biases at zero, which would hide mistakes
    model.to(dtype).save_pretrained(directory)
    return directory
