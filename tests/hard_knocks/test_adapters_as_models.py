"""Where a whole model is asked for, an adapter or a run is refused, with the way to make one of it."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.adapters import adapter_of, command, evaluated, lora
from tests.tiny_models import random_qwen2, random_store
from treeopo.errors import ModelError
from treeopo.learner.policy import load_base


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return random_qwen2(tmp_path / "base")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    """With its tokenizer, as trainers leave it."""
    made = adapter_of(base, tmp_path / "adapter", lora())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, made)
    return made


def test_an_adapter_is_no_student_and_no_teacher(base: Path, adapter: Path, tmp_path: Path) -> None:
    store = random_store(tmp_path / "trees.zarr", base)
    train = ("train", store, "-o", tmp_path / "run", "--steps", "1")
    uses = {
        "student": (*train, "--method", "sft", "--student", adapter),
        "teacher": (*train, "--student", base, "--method", "tree-opo-kl", "--set", f"teacher={adapter}"),
        "teacher ": ("mcts", "build", "--teacher", adapter, "--limit", "1", "-o", tmp_path / "new.zarr"),
    }
    for setting, words in uses.items():
        code, said = command(*words)
        assert code == 2
        assert f"{setting.strip()} {adapter}: is an adapter" in said
        assert f"treeopo export {adapter} --merge" in said
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "new.zarr").exists()


def test_a_run_is_no_student(base: Path, tmp_path: Path) -> None:
    store = random_store(tmp_path / "trees.zarr", base)
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier/config.json").write_text('{"config": {}}')
    code, said = command("train", store, "--student", tmp_path / "earlier", "-o", tmp_path / "run")
    assert (code, "is a training run, not a whole model; merge it first" in said) == (2, True), said


def test_the_way_out_is_one(base: Path, adapter: Path, tmp_path: Path) -> None:
    assert command("export", adapter, "--merge", tmp_path / "whole")[0] == 0
    store = random_store(tmp_path / "trees.zarr", base)
    words = ("train", store, "-o", tmp_path / "run", "--steps", "1", "--method", "sft", "--student", tmp_path / "whole")
    code, said = command(*words)
    assert code == 0, said


def test_an_adapter_of_an_adapter_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    second = adapter_of(base, tmp_path / "second", lora())
    with pytest.raises(ModelError, match=r"its base \S+adapter is an adapter itself; merge that first"):
        evaluated(second, base=str(adapter))


def test_transformers_does_not_slip_an_adapter_under_ours(adapter: Path) -> None:
    """It loads one for a model, also from the hub, where no directory shows what it is."""
    assert AutoModelForCausalLM.from_pretrained(adapter) is not None
    with pytest.raises(ModelError, match="is an adapter, not a whole model"):
        load_base(str(adapter), torch.float32)
