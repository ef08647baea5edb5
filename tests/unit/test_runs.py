"""What the composition root decides: which store a run draws from, and what a build asks of its teacher."""

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from treeopo_storage import Action, TreeStore, open_store

from tests.tiny_models import byte_tokenizer
from treeopo import runs
from treeopo.config import BuildConfig
from treeopo.engines.scripted import Pieces, ScriptedEngine
from treeopo.engines.settings import EngineOptions
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.errors import RunError
from treeopo.records import Completion, FloatArray, IntArray, Request
from treeopo.search.actions import TEMPLATES


def test_a_re_tokenised_store_says_the_same_in_other_tokens_and_is_made_once(
    searched_store: TreeStore, tmp_path: Path
) -> None:
    byte_tokenizer().save_pretrained(tmp_path / "model")
    tokenizer = ModelTokenizer(str(tmp_path / "model"))
    notices: list[str] = []
    for _ in range(2):
        copy = runs._retokenized(searched_store, tmp_path / "copy.zarr", tokenizer, notices.append)
    assert notices == [f"{searched_store.node_count} prefixes re-tokenised, 0 no longer decode to their text"]
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

    async def score(self, token_ids: list[IntArray], prefix_lengths: list[int]) -> list[FloatArray]:
        assert all(len(ids) + 1 <= self._room for ids in token_ids)
        return await super().score(token_ids, prefix_lengths)


def _talk(prompt: str, rng: random.Random, version: int) -> Pieces:
    return [(f"{rng.getrandbits(rng.randrange(1, 99))}\n\n", -1.0) for _ in range(4)] + [("#### 1", -1.0)]


def quiet(*_: object) -> None:
    """Nobody watches."""


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BuildConfig:
    """A build with every action by a scripted teacher, and templates of its own."""

    async def start_engine(model: str, options: EngineOptions) -> ScriptedEngine:
        return CrampedEngine(model, options)

    monkeypatch.setattr(runs, "start_engine", start_engine)
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


def test_a_build_with_every_action_fits_its_engine_and_knows_every_log_probability(build: BuildConfig) -> None:
    runs.build_store(build, quiet, quiet)
    store = open_store(build.output)
    trees = [store.problem(number) for number in range(4)]
    assert set(np.concatenate([tree.action for tree in trees])) == set(Action)
    assert not any(np.isnan(tree.teacher_logprobs[tree.token_offsets[1] :]).any() for tree in trees)
    assert sorted(store.meta.search["action_prompts"]) == ["reanswer", "rephrase", "subquestion"]


def test_a_build_does_not_go_on_with_templates_that_say_something_else(build: BuildConfig) -> None:
    runs.build_store(build.model_copy(update={"limit": 2}), quiet, quiet)
    runs.build_store(build.model_copy(update={"limit": 3}), quiet, quiet)
    (build.search.templates / "rephrase.txt").write_text("{question}")
    with pytest.raises(RunError, match="built with other settings"):
        runs.build_store(build, quiet, quiet)


def test_a_build_by_continuation_records_no_prompt_of_its_own(
    build: BuildConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def start_engine(model: str, options: EngineOptions) -> ScriptedEngine:
        return CrampedEngine(model, options)

    monkeypatch.setattr(runs, "start_engine", start_engine)
    plain = replace(build.search, actions=("step", "solution"), templates=None)
    runs.build_store(build.model_copy(update={"search": plain}), quiet, quiet)
    store = open_store(build.output)
    assert "action_prompts" not in store.meta.search
    assert store.meta.search["search"]["actions"] == ["step", "solution"]
