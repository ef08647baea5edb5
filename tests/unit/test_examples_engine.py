"""Engines of a user's own, by `engine.kind`: one that is a script builds a store, one over transformers is exact."""

import json
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from treeopo_storage import open_store

from tests.tiny_models import byte_tokenizer, random_qwen2
from treeopo.config import BuildConfig, load_config
from treeopo.engines.conformance import ExactEngineConformance, Policies, make_policies
from treeopo.engines.launch import start_engine
from treeopo.engines.settings import EngineOptions
from treeopo.errors import ConfigError
from treeopo.jobs.build import build_store
from treeopo.learner.policy import LoraPolicy
from treeopo.learner.settings import LoraSettings
from treeopo.ports import Engine


def test_a_store_is_built_by_the_example_s_teacher(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path / "model")
    rows = [{"question": f"Guess {number}.", "answer": f"#### {number}"} for number in range(4)]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = {
        "output": tmp_path / "trees.zarr",
        "teacher": str(tmp_path / "model"),
        "problems": str(tmp_path / "problems.jsonl"),
        "engine.kind": "examples.engine:start",
    }
    build_store(load_config(BuildConfig, file=None, flags=flags), lambda notice: None, lambda *progress: None)
    for index, tree in enumerate(open_store(tmp_path / "trees.zarr").problems(0, 4)):
        assert set(tree.texts[1:]) <= {"odd\n\n", "even\n\n", *(f"#### {digit}" for digit in range(10))}
        wrong = {0: "odd", 1: "even"}[index % 2]
        values = dict(zip(tree.texts, tree.value_sum, strict=True))
        assert values[f"{wrong}\n\n"] == 0
        step = tree.texts.index(f"{wrong}\n\n")
        assert tree.teacher_logprobs[tree.token_offsets[step]] == pytest.approx(np.log(1 / 2))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_qwen2(tmp_path_factory.mktemp("models") / "qwen2", layers=1)


@pytest.fixture(scope="module")
def saved_policies(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Policies:
    lora = LoraSettings(rank=4, alpha=16, dropout=0.0)
    load = partial(LoraPolicy.load, str(model), lora, dtype=torch.float32, device=torch.device("cpu"))
    return make_policies(load, tmp_path_factory.mktemp("policies"))


@pytest.mark.engine
class TestTransformers(ExactEngineConformance):
    @pytest.fixture
    def policies(self, saved_policies: Policies) -> Policies:
        return saved_policies

    @pytest.fixture
    def start(self, model: Path) -> Callable[[], Awaitable[Engine]]:
        kind = "examples.transformers_engine:start"
        options = EngineOptions(kind=kind, max_model_tokens=self.max_model_tokens, dtype="float32")
        return partial(start_engine, str(model), options)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"kind": "sglang"}, "unknown engine.kind 'sglang'; use auto, vllm, server, or package.module:function"),
        ({"kind": "server"}, "engine.kind is server; name one with --engine or engine.urls"),
        (
            {"kind": "vllm", "urls": ("http://a",)},
            "engine.kind vllm starts an engine here and engine.urls names",
        ),
        ({"kind": "nowhere:start"}, "engine.kind nowhere:start: importing nowhere failed (ModuleNotFoundError"),
        ({"kind": "examples.engine:begin"}, "engine.kind examples.engine:begin: module examples.engine has no begin"),
        ({"kind": "examples.engine:DIGITS"}, "it must be `async def start(model, options, adapters)`"),
    ],
)
async def test_an_engine_that_cannot_be_had_is_one_line(settings: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError) as error:
        await start_engine("nobody", EngineOptions(**settings))  # type: ignore[arg-type]
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)
