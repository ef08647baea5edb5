"""Sides that run at once share the cores; one alone takes all; nobody gets more than there are."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from tests.killed_run import new_run, prepare
from treeopo.engines.settings import Adapters, EngineOptions
from treeopo.errors import ConfigError, EngineError
from treeopo.jobs.train import train
from treeopo.learner.settings import LearnerSettings
from treeopo.threads import cores, engine_share, share


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of eight cores, and nobody has said anything."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)


@pytest.mark.parametrize(
    ("variables", "there"),
    [
        ({}, 8),
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "4,2"}, 4),
        ({"OMP_NUM_THREADS": "0"}, 8),
        ({"OMP_NUM_THREADS": "many"}, 8),
        ({"LOCAL_WORLD_SIZE": "2"}, 4),
        ({"LOCAL_WORLD_SIZE": "16"}, 1),
    ],
)
def test_the_cores_are_those_that_this_process_may_use(
    eight: None, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], there: int
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cores() == there


@pytest.mark.parametrize(
    ("asked", "sides", "given"), [("auto", 1, 8), ("auto", 2, 4), ("auto", 3, 2), ("auto", 9, 1), (5, 2, 5)]
)
def test_sides_share_the_cores_unless_somebody_said_how_many(eight: None, asked: Any, sides: int, given: int) -> None:
    assert share(asked, sides) == given


def model(path: Path, hidden: int, layers: int) -> str:
    LlamaConfig(hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=hidden // 32).save_pretrained(path)
    return str(path)


def test_an_engine_of_a_tiny_model_gets_one_thread_and_others_their_share(eight: None, tmp_path: Path) -> None:
    tiny, small = model(tmp_path / "tiny", 128, 4), model(tmp_path / "small", 576, 30)  # SmolLM2-135M's shape
    assert [engine_share("auto", tiny), engine_share("auto", small), engine_share("auto", small, 2)] == [1, 8, 4]
    assert engine_share(6, tiny) == 6
    assert engine_share("auto", str(tmp_path / "nowhere")) == 8


@pytest.mark.parametrize(("method", "learner", "engine"), [("sft", 8, None), ("tree-opo", 4, 1)])
def test_a_run_starts_its_sides_with_their_shares(
    eight: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, learner: int, engine: int | None
) -> None:
    prepare(tmp_path)
    told: list[int] = []
    set_threads: Callable[[int], None] = torch.set_num_threads

    def remember(threads: int) -> None:
        told.append(threads)
        set_threads(1)

    monkeypatch.setattr(torch, "set_num_threads", remember)
    options_seen: list[EngineOptions] = []

    async def start_engine(model: str, options: EngineOptions, adapters: Adapters | None) -> Any:
        options_seen.append(options)
        raise EngineError("seen enough")

    run = new_run(tmp_path, "run", method=method, steps=1)
    if engine is None:
        train(run, lambda notice: None, lambda step, metrics: None, start_engine)
    else:
        with pytest.raises(EngineError, match="seen enough"):
            train(run, lambda notice: None, lambda step, metrics: None, start_engine)
    assert told == [learner]
    assert [options.threads for options in options_seen] == ([] if engine is None else [engine])


def test_no_side_may_have_less_than_one_thread() -> None:
    for make in (LearnerSettings, EngineOptions):
        with pytest.raises(ConfigError, match=r"threads is 0; it must be at least 1"):
            make(threads=0)
