"""Random models of real architectures with a byte tokenizer, small enough to make in a test, and trees in its ids."""

from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer
from treeopo_storage import StoreMeta, create_store, open_writer
from treeopo_storage.conformance import random_tree

from treeopo.engines.tokenizer import ModelTokenizer

END_OF_TEXT = "<|endoftext|>"
VOCABULARY = 257


def byte_tokenizer() -> Qwen2Tokenizer:
    """Qwen2's own tokenizer class without a single merge: one token a byte, then the end of text."""
    vocabulary = {character: index for index, character in enumerate(sorted(ByteLevel.alphabet()))}
    vocabulary[END_OF_TEXT] = len(vocabulary)
    special = dict.fromkeys(("unk_token", "eos_token", "pad_token"), END_OF_TEXT)
    return Qwen2Tokenizer(vocab=vocabulary, merges=[], **special)


def random_qwen2(directory: Path, *, layers: int = 2, dtype: torch.dtype = torch.float32, tied: bool = True) -> Path:
    """Save a Qwen2 of a few thousand parameters with biased attention, and embedding and head one weight (`tied`), as
    Qwen2.5-1.5B has them.
    """
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=VOCABULARY - 1,
    )
    model = Qwen2ForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)  # transformers starts biases at zero, which would hide mistakes
    model.to(dtype).save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return directory


def random_store(path: Path, model: Path, problems: int = 20) -> Path:
    """A store of random trees that nobody searched, in the token ids of `model`."""
    create_store(path, StoreMeta(tokenizer_fingerprint=ModelTokenizer(str(model)).fingerprint, teacher="nobody"))
    with open_writer(path) as writer:
        writer.append([random_tree(f"p{seed}", seed, nodes=12, vocabulary=VOCABULARY - 1) for seed in range(problems)])
    return path
