"""Tokenizer, teacher and student from a recipe. Imports torch and transformers."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from tokenizers import pre_tokenizers, trainers
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer
from transformers.utils.logging import disable_progress_bar

from treeopo.learner.supervised import Example, SupervisedSettings, train_supervised
from treeopo.tiny.corpus import clean_texts, misread_texts
from treeopo.tiny.recipe import ModelRecipe, Phase

END, PAD = "<|endoftext|>", "<|pad|>"
_TOKENIZER_TEXTS = 5000
_THREADS = 2  # more of them are no faster on matrices of this size

OnStep = Callable[[str, int, float], None]
"""Told the phase, the step (from 1) and the loss."""


def make_models(recipe: ModelRecipe, directory: Path, on_step: OnStep) -> None:
    """Write `directory`/teacher and `directory`/student: bf16 checkpoints of transformers, each with the tokenizer."""
    texts = (prompt + solution for prompt, solution in clean_texts(recipe.difficulty, recipe.teacher.seed))
    tokenizer = train_tokenizer(islice(texts, _TOKENIZER_TEXTS), recipe.vocabulary)
    model = new_model(recipe, tokenizer)
    corpora = {
        "teacher": (recipe.teacher, clean_texts(recipe.difficulty, recipe.teacher.seed)),
        "student": (
            recipe.student,
            misread_texts(recipe.difficulty, recipe.read_right_by_op, recipe.student.seed),
        ),
    }
    for name, (phase, corpus) in corpora.items():
        _train(model, tokenizer, phase, corpus, partial(on_step, name))
        _save(model, tokenizer, directory / name)


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Qwen2Tokenizer:
    """Byte-level BPE behind Qwen2's own normaliser, pre-tokenizer and decoder.

    transformers gives every checkpoint of model type qwen2 these three when it loads it, whatever was saved: a
    tokenizer trained behind others would silently split texts differently then.
    """
    backend = Qwen2Tokenizer().backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    trained = json.loads(backend.to_str())["model"]
    merges = [tuple(pair) for pair in trained["merges"]]
    return Qwen2Tokenizer(vocab=trained["vocab"], merges=merges, eos_token=END, pad_token=PAD)


def new_model(recipe: ModelRecipe, tokenizer: Qwen2Tokenizer) -> Qwen2ForCausalLM:
    """An untrained model of the recipe's size. On a CPU eager attention trains texts this short faster than fused."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=3 * recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=recipe.positions,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="eager",
    )
    with torch.random.fork_rng():
        torch.manual_seed(recipe.teacher.seed)
        return Qwen2ForCausalLM(config)


def _train(
    model: Qwen2ForCausalLM,
    tokenizer: Qwen2Tokenizer,
    phase: Phase,
    corpus: Iterator[tuple[str, str]],
    on_step: Callable[[int, float], None],
) -> None:
    """One pass over fresh examples; the global thread count is restored after."""
    prompts, solutions = zip(*islice(corpus, phase.steps * phase.batch_size), strict=True)
    examples = [
        Example(prompt_ids, [*solution_ids, tokenizer.eos_token_id])
        for prompt_ids, solution_ids in zip(
            tokenizer(list(prompts))["input_ids"], tokenizer(list(solutions))["input_ids"], strict=True
        )
    ]
    settings = SupervisedSettings(
        phase.steps, phase.batch_size, phase.learning_rate, bf16_autocast=_multiplies_bf16(), seed=phase.seed
    )
    with _threads(_THREADS):
        train_supervised(model, examples, settings, tokenizer.pad_token_id, on_step)


def _save(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, directory: Path) -> None:
    disable_progress_bar()  # of one file
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    saved = Qwen2ForCausalLM(model.config).to(torch.bfloat16)
    saved.load_state_dict(weights)
    saved.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _multiplies_bf16() -> bool:
    """Whether the CPU has bf16 instructions: without them autocast emulates bf16, slowly."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
