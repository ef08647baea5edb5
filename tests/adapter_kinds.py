"""The kinds of adapters that people save, and what each command makes of them: the table of docs/adapters.md."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import IA3Config, LoHaConfig, PromptTuningConfig, VeraConfig
from safetensors.torch import load_file, save_file
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from tests.adapters import WEIGHTS, adapter_of, lora
from tests.tiny_models import byte_tokenizer, random_qwen2

COMMANDS = ("`eval`", "`eval --set engine.publish=adapter`", "`export --merge`", "`train`, going on")

PEFT = "as PEFT"

_ONE_WEIGHT = "which are one weight"
_BESIDE = "cannot be used by an engine beside the base"
_LAYERS = "name linear layers below the head"
_MORE = "is more than LoRA's A and B"


@dataclass(frozen=True, slots=True)
class Kind:
    """make: (directory) to base and adapter. outcomes: by command, `PEFT` if the policy is the one that PEFT computes,
    else words of the line that refuses it. given: the base is named by --base.
    """

    make: Callable[[Path], tuple[Path, Path]]
    outcomes: tuple[str, str, str, str]
    given: bool = False


def over_qwen2(config: Callable[[], Any], *, tied: bool = True) -> Callable[[Path], tuple[Path, Path]]:
    def make(directory: Path) -> tuple[Path, Path]:
        base = random_qwen2(directory / "base", tied=tied)
        return base, adapter_of(base, directory / "adapter", config())

    return make


def over_experts(config: Callable[[], Any]) -> Callable[[Path], tuple[Path, Path]]:
    def make(directory: Path) -> tuple[Path, Path]:
        base = random_mixture(directory / "base")
        return base, adapter_of(base, directory / "adapter", config())

    return make


def random_mixture(directory: Path) -> Path:
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "head_dim": 32, "vocab_size": 257}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    torch.manual_seed(0)
    config = Qwen3MoeConfig(**shape, **heads, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
    Qwen3MoeForCausalLM(config).save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return directory


def _with_other_keys(directory: Path) -> tuple[Path, Path]:
    """As saved from a model inside a wrapper: PEFT finds no place for any tensor, and says nothing."""
    base, adapter = over_qwen2(lora)(directory)
    tensors = load_file(adapter / WEIGHTS)
    save_file({key.replace("model.model.", "model.wrapped.model."): x for key, x in tensors.items()}, adapter / WEIGHTS)
    return base, adapter


def _without_its_base(directory: Path) -> tuple[Path, Path]:
    base, adapter = over_qwen2(lora)(directory)
    return Path(shutil.move(base, directory / "moved")), adapter


def _of_a_revision(directory: Path) -> tuple[Path, Path]:
    """Of a hub's model at a revision that this machine cannot have."""
    base, adapter = over_qwen2(lora)(directory)
    config = adapter / "adapter_config.json"
    changes = {"base_model_name_or_path": "org/tiny", "revision": "abc123"}
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    return base, adapter


def _ia3() -> IA3Config:
    return IA3Config(task_type="CAUSAL_LM", target_modules=["v_proj", "down_proj"], feedforward_modules=["down_proj"])


_ALL = (PEFT, PEFT, PEFT, PEFT)
_MERGED = (PEFT, _BESIDE, PEFT, _LAYERS)
_NOT_WHILE_IT_RUNS = (_ONE_WEIGHT, _ONE_WEIGHT, PEFT, _LAYERS)
_PROMPTS = "which changes no weights, cannot be merged"
_GONE = "there is no such directory"
_NO_PLACE = "no place for its tensor"

KINDS: dict[str, Kind] = {
    "LoRA": Kind(over_qwen2(lora), _ALL),
    "rsLoRA": Kind(over_qwen2(partial(lora, use_rslora=True)), _ALL),
    "`rank_pattern`": Kind(over_qwen2(partial(lora, rank_pattern={"q_proj": 16})), _ALL),
    "`alpha_pattern`": Kind(over_qwen2(partial(lora, alpha_pattern={"v_proj": 1})), _ALL),
    "PiSSA": Kind(over_qwen2(partial(lora, init_lora_weights="pissa")), (PEFT, _BESIDE, PEFT, PEFT)),
    "DoRA": Kind(over_qwen2(partial(lora, use_dora=True)), (PEFT, _BESIDE, PEFT, _MORE)),
    "`bias`": Kind(over_qwen2(partial(lora, bias="all")), (PEFT, _BESIDE, PEFT, PEFT)),
    "`lora_bias`": Kind(over_qwen2(partial(lora, lora_bias=True)), (PEFT, _BESIDE, PEFT, _MORE)),
    "`modules_to_save`: a norm": Kind(over_qwen2(partial(lora, modules_to_save=["norm"])), _MERGED),
    "IA3": Kind(over_qwen2(_ia3), _MERGED),
    "LoHa": Kind(over_qwen2(partial(LoHaConfig, r=4, task_type="CAUSAL_LM", target_modules=["q_proj"])), _MERGED),
    "VeRA": Kind(over_qwen2(partial(VeraConfig, r=4, task_type="CAUSAL_LM", target_modules=["q_proj"])), _MERGED),
    **{
        f"{kind}{', one weight with the other end' if tied else ''}": Kind(
            over_qwen2(config, tied=tied), _NOT_WHILE_IT_RUNS if tied else _MERGED
        )
        for tied in (False, True)
        for kind, config in {
            "trainable tokens": partial(lora, trainable_token_indices=[5, 6]),
            "`modules_to_save`: the embedding": partial(lora, modules_to_save=["embed_tokens"]),
            "`modules_to_save`: the head": partial(lora, modules_to_save=["lm_head"]),
            "LoRA on the embedding": partial(lora, target_modules=["embed_tokens", "q_proj"]),
            "LoRA on the head": partial(lora, target_modules=["lm_head", "q_proj"]),
        }.items()
    },
    "LoRA beside experts": Kind(over_experts(lora), _ALL),
    "LoRA on experts": Kind(
        over_experts(partial(lora, target_modules=["q_proj"], target_parameters=["mlp.experts.down_proj"])),
        ("changes the experts", "changes the experts", PEFT, "cannot be published"),
    ),
    "prompt tuning": Kind(
        over_qwen2(partial(PromptTuningConfig, task_type="CAUSAL_LM", num_virtual_tokens=2)), (_PROMPTS,) * 4
    ),
    "keys that match nothing": Kind(_with_other_keys, (_NO_PLACE,) * 4),
    "a base that moved": Kind(_without_its_base, (_GONE, _GONE, _GONE, PEFT)),
    "a base that moved, given by `--base`": Kind(_without_its_base, _ALL, given=True),
    "a revision that cannot be had": Kind(_of_a_revision, ("cannot be had", "cannot be had", "cannot be had", PEFT)),
    "the same, given by `--base`": Kind(_of_a_revision, _ALL, given=True),
}


def markdown() -> str:
    """The table, for docs/adapters.md."""
    lines = ["| adapter | " + " | ".join(COMMANDS) + " |", "|---|" + "---|" * len(COMMANDS)]
    for name, kind in KINDS.items():
        cells = (words if words == PEFT else f"refused: {words}" for words in kind.outcomes)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
