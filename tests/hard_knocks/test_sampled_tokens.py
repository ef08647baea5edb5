"""What a teacher may sample: rows of its head without a token, and separators that nothing stands between."""

import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from transformers import LlamaConfig
from treeopo_storage import (
    MemoryTreeStore,
    StoreMeta,
    create_store,
    open_store,
)
from treeopo_storage.interchange import merged_meta
from treeopo_storage.verify import verify_store

from tests.hard_knocks.odd_tokenizers import byte_level, saved
from tests.hard_knocks.small_stores import build, imported
from treeopo.engines.scripted import CharTokenizer, Pieces, ScriptedEngine
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.errors import ModelError
from treeopo.inspect.tokens import check_ids
from treeopo.search.steps import StepSplitter


class Padding(ScriptedEngine):
    """Samples a row of the head that no token of the tokenizer belongs to, after each piece."""

    def _lay_out(self, pieces: Pieces) -> tuple[list[int], list[float]]:
        token_ids, logprobs = super()._lay_out(pieces)
        return [*token_ids, ROWS - 1], [*logprobs, -5.0]


ROWS = 258 + 64


def padded(path: Path) -> ModelTokenizer:
    """A tokenizer of 258 tokens beside a model of 64 logits more."""
    saved(path, byte_level())
    LlamaConfig(vocab_size=ROWS).save_pretrained(path)
    return ModelTokenizer(str(path))


# vllm-project/vllm#13175, #22471, NVIDIA-NeMo/RL#237, volcengine/verl#1398, QwenLM/Qwen3#885
def test_a_sampled_padding_row_is_a_token_without_text(tmp_path: Path) -> None:
    tokenizer = padded(tmp_path / "model")
    assert (len(tokenizer.hf), tokenizer.vocabulary_size) == (258, ROWS)
    store = open_store(build(tmp_path, tokenizer, Padding))
    tree = store.problem(0)
    assert ROWS - 1 in tree.token_ids
    assert store.meta.vocabulary_size == ROWS
    assert all(set(text) <= set("012345678\n# ") | {"9"} for text in tree.texts[1:])
    verify_store(tmp_path / "t.zarr")


def test_a_build_that_such_a_row_ended_goes_on(tmp_path: Path) -> None:
    tokenizer = padded(tmp_path / "model")
    meta = open_store(build(tmp_path, tokenizer)).meta
    shutil.rmtree(tmp_path / "t.zarr")
    create_store(tmp_path / "t.zarr", replace(meta, vocabulary_size=len(tokenizer.hf)))
    assert ROWS - 1 in open_store(build(tmp_path, tokenizer, Padding)).problem(0).token_ids
    assert open_store(tmp_path / "t.zarr").meta == meta


def test_a_student_with_fewer_rows_is_refused_where_it_lacks_one(tmp_path: Path) -> None:
    tokenizer = padded(tmp_path / "model")
    store = open_store(build(tmp_path, tokenizer, Padding))
    check_ids(store, ROWS)
    with pytest.raises(ModelError, match=f"the store holds token {ROWS - 1} .* and the student has 258 tokens: use"):
        check_ids(store, 258)
    (tmp_path / "clean").mkdir()
    check_ids(open_store(build(tmp_path / "clean", tokenizer)), 258)  # a larger head alone is no reason


def test_stores_of_heads_of_different_size_are_merged() -> None:
    small, large = (
        MemoryTreeStore(StoreMeta("tokens", "t", vocabulary_size=size)).open_store() for size in (258, ROWS)
    )
    unknown = MemoryTreeStore(StoreMeta("tokens", "t")).open_store()
    assert merged_meta([small, large]).vocabulary_size == ROWS
    assert merged_meta([small, unknown]).vocabulary_size is None


# vllm-project/vllm#3672, andyclsr/CAPO#1
@pytest.mark.parametrize(
    ("pieces", "steps"),
    [
        (["x", "\n\n", "\n\n", "y"], ["x\n\n\n\n", "y"]),
        (["x", ".\n\n", "\n\n\n", " \n\n", "y", "\n\n"], ["x.\n\n\n\n\n \n\n", "y\n\n"]),
        (["\n\n", "x", "\n\n", "y"], ["\n\nx\n\n", "y"]),
        (["\r\n\r\n", "\n\n", "x"], ["\r\n\r\n\n\nx"]),
        (["\n\n", "\n\n"], ["\n\n\n\n"]),
    ],
)
def test_separators_alone_are_no_step(pieces: list[str], steps: list[str]) -> None:
    vocabulary = sorted(set(pieces))
    splitter = StepSplitter(Pieced(vocabulary), "\n\n", "")
    ends, end, _ = splitter.split([vocabulary.index(piece) for piece in pieces])
    cuts = [0, *ends, *([end] if end not in ends else [])]
    assert ["".join(pieces[start:stop]) for start, stop in pairwise(cuts)] == steps


@pytest.mark.parametrize(
    ("steps", "texts"),
    [
        (["a", "\n\n", " ", "9"], ("a\n\n\n\n \n\n", "9")),
        (["\n", "a", "9"], ("\n\n\na\n\n", "9")),
        (["a", "9", "\n"], ("a\n\n", "9\n\n\n")),
        (["\n\n"], ("\n\n",)),
    ],
)
def test_neither_are_they_in_an_imported_trace(tmp_path: Path, steps: list[str], texts: tuple[str, ...]) -> None:
    tree = imported(tmp_path, saved(tmp_path / "model", byte_level()), {"steps": steps})
    assert tree.texts[1:] == texts
    assert tree.terminal.tolist() == [False] * (tree.node_count - 1) + [True]


class Pieced(CharTokenizer):
    """Token i is the i-th piece."""

    eos_token_id = -1

    def __init__(self, pieces: Sequence[str]) -> None:
        self._pieces = pieces

    def decode(self, token_ids: list[int]) -> str:
        return "".join(self._pieces[token] for token in token_ids)


def blank_first(prompt: str, rng: random.Random, version: int) -> Pieces:
    """A teacher that often writes further blank lines before it goes on."""
    said = [("\n\n", -1.0)] * (0 if prompt.endswith("\n\n\n\n") else rng.randrange(3))
    return [*said, (f"{rng.randrange(9)}\n\n", -1.0), *said, ("#### 9", -1.0)]


def test_a_teacher_that_answers_with_blank_lines_is_asked_on(tmp_path: Path) -> None:
    tokenizer = saved(tmp_path / "model", byte_level())
    tree = open_store(build(tmp_path, tokenizer, policy=blank_first, search={"rollouts": 12})).problem(0)
    assert tree.node_count > 6
    assert all(text.strip() for text in tree.texts[1:])
    assert any(text.startswith("\n\n") for text in tree.texts[1:])
