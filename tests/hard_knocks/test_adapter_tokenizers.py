"""An adapter is asked by the tokenizer that it was saved with, as the model that `export` makes of it would be."""

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, GenerationConfig

from tests.adapters import adapter_of, command, lora
from tests.tiny_models import random_qwen2
from treeopo.config import EvalConfig, load_config
from treeopo.engines.settings import Adapters, EngineOptions
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.jobs.evaluate import evaluate
from treeopo.records import Completion, FinishReason, Request, WeightFormat

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


class Listener:
    """An engine that says nothing, and keeps what it is asked."""

    weight_format = WeightFormat.MERGED
    versions_in_use = frozenset({0})
    restarts = 0

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    async def generate(self, request: Request) -> Completion:
        self.asked.append([int(token) for token in request.token_ids])
        nothing = np.zeros(1, np.float32)
        return Completion(np.zeros(1, np.int32), nothing, np.zeros(1, np.int32), "", FinishReason.STOP)

    async def publish(self, version: int, path: Path) -> None:
        pass

    async def close(self) -> None:
        pass


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return random_qwen2(tmp_path / "base")


def with_tokenizer(base: Path, directory: Path, **changes: str) -> Path:
    adapter = adapter_of(base, directory, lora())
    tokenizer = AutoTokenizer.from_pretrained(base)
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(adapter)
    return adapter


def prompts(model: Path, notices: list[str]) -> list[list[int]]:
    """The prompts of one problem in chat style, and in `notices` what was said of them."""
    engine = Listener()

    async def start(name: str, options: EngineOptions, adapters: Adapters | None) -> Listener:
        return engine

    flags = {"model": str(model), "limit": 1, "prompt.style": "chat"}
    evaluate(load_config(EvalConfig, file=None, flags=flags), notices.append, lambda progress: None, start)  # type: ignore[arg-type]
    return engine.asked


def test_its_own_chat_template_is_used_where_the_base_has_another_or_none(base: Path, tmp_path: Path) -> None:
    adapter = with_tokenizer(base, tmp_path / "adapter", chat_template=TEMPLATE)
    notices: list[str] = []
    (asked,) = prompts(adapter, notices)
    assert AutoTokenizer.from_pretrained(base).decode(asked).startswith("<user>")
    assert notices == []
    command("export", adapter, "--merge", tmp_path / "merged")
    assert prompts(tmp_path / "merged", []) == [asked]


def test_another_end_of_text_is_told(base: Path, tmp_path: Path) -> None:
    adapter = with_tokenizer(base, tmp_path / "adapter", chat_template=TEMPLATE, eos_token="!")
    notices: list[str] = []
    prompts(adapter, notices)
    assert any("ends a text with '!', and the engine stops at the base's '<|endoftext|>'" in one for one in notices)


def test_an_end_of_text_at_which_the_base_stops_too_is_not_told_of(base: Path, tmp_path: Path) -> None:
    adapter = with_tokenizer(base, tmp_path / "adapter", chat_template=TEMPLATE, eos_token="!")
    own, end = AutoTokenizer.from_pretrained(base).eos_token_id, AutoTokenizer.from_pretrained(adapter).eos_token_id
    GenerationConfig(eos_token_id=[own, end]).save_pretrained(base)
    notices: list[str] = []
    prompts(adapter, notices)
    assert not any("ends a text with" in notice for notice in notices)
    assert ModelTokenizer(str(adapter), weights=str(base)).end_token_ids == {own, end}


def test_without_a_tokenizer_of_its_own_the_base_s_is_used(base: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(base)
    adapter = adapter_of(base, tmp_path / "adapter", lora())
    assert prompts(adapter, []) == prompts(base, [])
