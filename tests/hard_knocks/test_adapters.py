"""Adapters and their bases as people have them: what is loaded is what PEFT computes, or one line refuses it.

Models are random and of a few thousand parameters; nothing here starts an engine.
"""

import json
from pathlib import Path

import pytest
import torch

from tests.tiny_models import random_qwen2
from treeopo.learner.policy import LoraPolicy
from treeopo.learner.settings import LoraSettings


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_qwen2(tmp_path_factory.mktemp("base") / "student")


def load(base: Path | str, adapter: Path | None = None, lora: LoraSettings | None = None) -> LoraPolicy:
    return LoraPolicy.load(
        str(base), lora or LoraSettings(rank=4), dtype=torch.float32, device=torch.device("cpu"), adapter=adapter
    )


# huggingface/peft#1452, hiyouga/LLaMA-Factory#2793
@pytest.mark.parametrize("resumed", [False, True])
def test_no_save_of_an_adapter_asks_the_hub(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resumed: bool
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the hub was asked")

    policy = load(student)
    if resumed:
        policy.save_adapter(tmp_path / "before")
        policy = load(student, tmp_path / "before")
    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", refuse)
    policy.model.peft_config["default"].base_model_name_or_path = "org/tiny"  # as of a model from the hub
    policy.save_adapter(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["base_model_name_or_path"] == "org/tiny"
