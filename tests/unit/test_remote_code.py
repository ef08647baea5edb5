"""Code that a model's repository brings is run only where that was asked for, and then by every loader."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from treeopo_cli.main import app
from typer.testing import CliRunner

from tests.tiny_models import random_qwen2
from treeopo.errors import ConfigError, ModelError
from treeopo.learner.policy import load_base
from treeopo.learner.settings import LearnerSettings
from treeopo.learner.teacher import TeacherModel

CODE = """from transformers import Qwen2Config, Qwen2ForCausalLM

class OwnConfig(Qwen2Config):
    model_type = "own"

class OwnModel(Qwen2ForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of a type that transformers does not know, with the code that defines it."""
    directory = random_qwen2(tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "own.py").write_text(CODE)
    return directory


def test_it_is_refused_in_one_line_unless_asked_for(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    with pytest.raises(ModelError, match="cannot be loaded") as error:
        load_base(str(model), torch.float32)
    assert "\n" not in str(error.value)
    assert type(load_base(str(model), torch.float32, trust_remote_code=True)).__name__ == "OwnModel"


def test_a_teacher_brings_its_code_on_the_same_terms(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    with pytest.raises(ModelError, match="cannot be loaded"):
        TeacherModel(str(model), LearnerSettings())
    tokens = np.arange(9, dtype=np.int32)
    (scores,) = TeacherModel(str(model), LearnerSettings(), trust_remote_code=True).score([tokens], [4])
    assert scores.shape == (5,)
    assert (scores < 0).all()


@pytest.mark.parametrize("command", [["train", "s"], ["eval", "m"], ["mcts", "build"]])
@pytest.mark.parametrize("asked", [True, False])
def test_each_command_passes_the_answer_on(command: list[str], asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def load_config(kind: type, *, file: Path | None, flags: Mapping[str, Any]) -> None:
        seen.append(flags.get("engine.trust_remote_code"))
        raise ConfigError("seen")

    monkeypatch.setattr("treeopo.config.load_config", load_config)
    CliRunner().invoke(app, [*command, *(["--trust-remote-code"] if asked else [])])
    assert seen == [True if asked else None]
