"""Kinds of adapters × commands: each cell is what PEFT computes, or a refusal in one line.

vllm-project/vllm#6983 (DoRA), #6909 and sgl-project/sglang#40835 (rsLoRA), huggingface/trl#6007 (ranks),
vllm-project/vllm#9280, #11714, huggingface/peft#2777, hiyouga/LLaMA-Factory#9545 (modules_to_save). No engine is
started: compared is the policy that one would be given. tests/integration/test_engine.py gives them to a real one.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.adapter_kinds import COMMANDS, KINDS, PEFT, markdown
from tests.adapters import command, evaluated, load, logits, of_peft
from treeopo.engines.settings import EngineOptions, publishable_as
from treeopo.errors import InputError
from treeopo.ports import Engine
from treeopo.records import WeightFormat
from treeopo.run.adapter_files import room_for
from treeopo.run.models import resolve, serve

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")


class Made(NamedTuple):
    """given: the base, where --base names it."""

    base: Path
    adapter: Path
    given: str | None
    directory: Path


class Recorder:
    """An engine that keeps what it is given; `policy` is that in a model."""

    def __init__(self, base: Path, weight_format: WeightFormat) -> None:
        self.weight_format = weight_format
        self._base = base
        self.policy: Any = None

    async def publish(self, version: int, path: Path) -> None:
        if self.weight_format is WeightFormat.ADAPTER:
            self.policy = of_peft(self._base, path)
        else:
            self.policy = _with_weights(self._base, path)


def _with_weights(base: Path, weights: Path) -> Any:
    """The model that an engine has, started on `base`, once it took this file."""
    model = AutoModelForCausalLM.from_pretrained(base)
    tensors = load_file(weights)
    assert not model.load_state_dict(tensors, strict=False).unexpected_keys
    return model


def served(at: Made, publish: str, weight_format: WeightFormat) -> Any:
    """What an engine of `treeopo eval` is given."""
    with pytest.raises(AssertionError, match="an engine was started"):
        evaluated(at.adapter, **{"engine.publish": publish, "base": at.given})
    assert weight_format in publishable_as(EngineOptions(publish=publish), room_for([at.adapter]))  # type: ignore[arg-type]
    engine = Recorder(at.base, weight_format)
    asyncio.run(serve(cast(Engine, engine), 1, resolve(str(at.adapter), at.given)))
    return engine.policy


def merged(at: Made) -> Any:
    words = ["export", at.adapter, "--merge", at.directory / "merged", *(("--base", at.given) if at.given else ())]
    code, said = command(*words)
    if code:
        raise InputError(said)
    return AutoModelForCausalLM.from_pretrained(at.directory / "merged")


def trained(at: Made) -> Any:
    """What a run that goes on from a checkpoint with this adapter publishes at its start."""
    load(at.base, at.adapter).save_merged(at.directory / "policy.safetensors")
    return _with_weights(at.base, at.directory / "policy.safetensors")


DO: tuple[Callable[[Made], Any], ...] = (
    lambda at: served(at, "auto", WeightFormat.MERGED),
    lambda at: served(at, "adapter", WeightFormat.ADAPTER),
    merged,
    trained,
)


@pytest.mark.parametrize("name", KINDS)
def test_each_command_says_what_peft_says_or_refuses_in_a_line(tmp_path: Path, name: str) -> None:
    kind = KINDS[name]
    base, adapter = kind.make(tmp_path)
    at = Made(base, adapter, str(base) if kind.given else None, tmp_path)
    wanted: Tensor | None = None
    for what, do, outcome in zip(COMMANDS, DO, kind.outcomes, strict=True):
        if outcome == PEFT:
            if wanted is None:
                wanted = logits(of_peft(base, adapter))
                assert (wanted - logits(AutoModelForCausalLM.from_pretrained(base))).abs().max() > 1e-3
            torch.testing.assert_close(logits(do(at)), wanted, msg=what)
        else:
            with pytest.raises(InputError) as error:
                do(at)
            assert outcome in str(error.value), what
            assert "\n" not in str(error.value), what


def test_the_documentation_has_this_table() -> None:
    assert markdown() in (Path(__file__).parents[2] / "docs/adapters.md").read_text(encoding="utf-8")
