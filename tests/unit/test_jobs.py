"""What the jobs decide: which store a run draws from, and what a build asks of its teacher."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from treeopo_storage import Action, TreeStore, open_store

from tests.tiny_models import byte_tokenizer
from treeopo.config import BuildConfig
from treeopo.engines.scripted import Pieces, ScriptedEngine
from treeopo.engines.settings import Adapters, EngineOptions
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.errors import RunError
from treeopo.jobs.build import build_store
from treeopo.jobs.train import retokenized_copy
from treeopo.records import Completion, FloatArray, IntArray, Request
from treeopo.search.actions import TEMPLATES


def test_a_re_tokenised_store_says_the_same_in_other_tokens_and_is_made_once(
    searched_store: TreeStore, tmp_path: Path
) -> None:
    byte_tokenizer().save_pretrained(tmp_path / "model")
    tokenizer = ModelTokenizer(str(tmp_path / "model"))
    notices: list[str] = []
    for _ in range(2):
        copy = retokenized_copy(searched_store, tmp_path / "copy.zarr", tokenizer, notices.append)
    done, ended = notices
    assert done == f"{searched_store.node_count} prefixes re-tokenised; 0 no longer decode to their text"
    assert "which solutions ended by themselves is not known" in ended
    assert copy.meta.tokenizer_fingerprint == tokenizer.fingerprint
    tree = open_store(tmp_path / "copy.zarr").problem(2)
    text = "".join(searched_store.problem(2).texts[step] for step in tree.path(3))
    assert tokenizer.decode(tree.prefix_tokens(3).tolist()) == text


class CrampedEngine(ScriptedEngine):
    """Asserts what vLLM would refuse: that prompt and completion fit, and one token after what is scored."""

    def __init__(self, model: str, options: EngineOptions) -> None:
        super().__init__(_talk, ModelTokenizer(model), likelihood=lambda prefix, text: -float(len(text)))
        self._room = options.max_model_tokens

    async def generate(self, request: Request) -> Completion:
        assert len(request.token_ids) + request.max_tokens <= self._room
        return await super().generate(request)

    async def score(self, token_ids: Sequence[IntArray], prefix_lengths: Sequence[int]) -> list[FloatArray]:
        assert all(len(ids) + 1 <= self._room for ids in token_ids)
        return await super().score(token_ids, prefix_lengths)


def _talk(prompt: str, rng: random.Random, version: int) -> Pieces:
    return [(f"{rng.getrandbits(rng.randrange(1, 99))}\n\n", -1.0) for _ in range(4)] + [("#### 1", -1.0)]


def build(config: BuildConfig) -> None:
    async def start_engine(model: str, options: EngineOptions, adapters: Adapters | None) -> CrampedEngine:
        return CrampedEngine(model, options)

    build_store(config, lambda notice: None, lambda progress, remaining, seconds: None, start_engine)


@pytest.fixture
def config(tmp_path: Path) -> BuildConfig:
    """A build with every action by a scripted teacher, and templates of its own."""
    byte_tokenizer().save_pretrained(tmp_path / "model")
    rows = [{"question": "How many? " * number, "answer": "#### 1"} for number in range(1, 5)]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "templates").mkdir()
    for path in TEMPLATES.glob("*.txt"):
        (tmp_path / "templates" / path.name).write_text(path.read_text())
    return BuildConfig.model_validate(
        {
            "output": tmp_path / "trees.zarr",
            "teacher": str(tmp_path / "model"),
            "problems": str(tmp_path / "problems.jsonl"),
            "search": {
                "actions": ["step", "solution", "subquestion", "reanswer", "rephrase"],
                "templates": tmp_path / "templates",
                "max_step_tokens": 30,
                "max_solution_tokens": 60,
            },
        }
    )


def search_of(store: TreeStore) -> dict[str, Any]:
    return dict(store.meta.search)


def test_a_build_with_every_action_fits_its_engine_and_knows_every_log_probability(config: BuildConfig) -> None:
    build(config)
    store = open_store(config.output)
    trees = [store.problem(number) for number in range(4)]
    assert set(np.concatenate([tree.action for tree in trees])) == set(Action)
    assert not any(np.isnan(tree.teacher_logprobs[tree.token_offsets[1] :]).any() for tree in trees)
    assert sorted(search_of(store)["action_prompts"]) == ["reanswer", "rephrase", "subquestion"]


def test_a_build_does_not_go_on_with_templates_that_say_something_else(config: BuildConfig) -> None:
    build(config.model_copy(update={"limit": 2}))
    build(config.model_copy(update={"limit": 3}))
    assert config.search.templates is not None
    (config.search.templates / "rephrase.txt").write_text("{question}")
    with pytest.raises(RunError, match="built with other settings"):
        build(config)


def test_a_build_by_continuation_records_no_prompt_of_its_own(config: BuildConfig) -> None:
    plain = replace(config.search, actions=("step", "solution"), templates=None)
    build(config.model_copy(update={"search": plain}))
    store = open_store(config.output)
    assert "action_prompts" not in store.meta.search
    assert search_of(store)["search"]["actions"] == ["step", "solution"]
