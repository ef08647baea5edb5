"""Adapters made by PEFT over tiny models, and the commands that are given them."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM
from treeopo_cli.main import app
from typer.testing import CliRunner

from treeopo.config import EvalConfig, load_config
from treeopo.engines.settings import Adapters, EngineOptions
from treeopo.errors import InputError
from treeopo.jobs.evaluate import evaluate
from treeopo.learner.policy import LoraPolicy
from treeopo.learner.settings import LoraSettings
from treeopo.ports import Engine

WEIGHTS = "adapter_model.safetensors"


def adapter_of(base: Path, directory: Path, config: Any) -> Path:
    """Made by PEFT itself, every weight of it moved off its start."""
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(str(directory), save_embedding_layers=False)
    return directory


def lora(**settings: Any) -> LoraConfig:
    return LoraConfig(r=4, task_type="CAUSAL_LM", **{"target_modules": ["q_proj", "v_proj"], **settings})


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(torch.arange(3, 20)[None]).logits
    return found


def of_peft(base: Path, adapter: Path) -> PeftModel:
    model: PeftModel = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter))
    return model


def load(base: Path | str, adapter: Path | None = None, lora: LoraSettings | None = None) -> LoraPolicy:
    return LoraPolicy.load(
        str(base), lora or LoraSettings(rank=4), dtype=torch.float32, device=torch.device("cpu"), adapter=adapter
    )


def command(*words: str | Path) -> tuple[int, str]:
    """Exit status, and the error in one line or what was printed."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(result.exception, InputError):  # `treeopo_cli.main` prints it, and exits with 2
        return 2, str(result.exception)
    assert result.exit_code == 0, result.exception
    return 0, result.output


async def no_engine(model: str, options: EngineOptions, adapters: Adapters | None) -> Engine:
    raise AssertionError("an engine was started")


def evaluated(model: Path, **flags: Any) -> None:
    """`treeopo eval` of `model`, up to where an engine would start."""
    given = {"model": str(model), "problems": ("staged-arithmetic:easy:test",), "limit": 2, **flags}
    evaluate(load_config(EvalConfig, file=None, flags=given), lambda notice: None, lambda progress: None, no_engine)
