"""Which layers of a model get an adapter, from the ways in which people name them."""

import re
from difflib import get_close_matches
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from treeopo.errors import ModelError
from treeopo.learner.settings import ALL_LINEAR

_SHOWN = 12


def find_targets(base: Any, name: str, wanted: str | tuple[str, ...]) -> str | list[str]:
    """PEFT's `target_modules` for `wanted`: all-linear, the ends of layers' names, or a pattern of whole names.

    PEFT refuses a list only if none of its names is a layer's; here each must be, so that no layer is left out unseen.
    In a mixture of experts all-linear is every linear layer outside the blocks of experts: PEFT takes the names of
    layers inside (gate_proj) for the experts' own, and an engine takes no change of those (docs/vllm.md).

    Raises:
        ModelError: a name, or the pattern, is no layer's of the model `name`, and the nearest that are come with it; or
            it is one in a block of experts.
    """
    layers, blocks = [path for path, _ in base.named_modules() if path], _expert_blocks(base)
    if wanted == ALL_LINEAR:
        return _linear_outside(base, blocks) if blocks else ALL_LINEAR
    if isinstance(wanted, str):
        found = [layer for layer in layers if re.fullmatch(wanted, layer)]
        if not found:
            example = next(path for path, module in base.named_modules() if isinstance(module, nn.Linear | Conv1D))
            raise ModelError(
                f"learner.lora.target_modules: no layer of {name!r} matches {wanted!r}, which is taken as a pattern of "
                f"whole names, such as {example}; names alone (q_proj,v_proj) or all-linear do as well"
            )
        _refuse_inside(base, name, wanted, found, blocks)
        return wanted
    for target in wanted:
        found = [layer for layer in layers if layer == target or layer.endswith(f".{target}")]
        if not found:
            raise ModelError(
                f"learner.lora.target_modules: {name!r} has no layer {target!r}; it has {_names(base, target)}"
            )
        _refuse_inside(base, name, target, found, blocks)
    return list(wanted)


def _expert_blocks(base: Any) -> set[str]:
    """What the modules are called that hold experts, as `mlp` in model.layers.0.mlp.experts; empty if it has none."""
    return {path.split(".")[-2] for path, _ in base.named_modules() if path.endswith(".experts")}


def _is_inside(path: str, blocks: set[str]) -> bool:
    return not blocks.isdisjoint(path.split("."))


def _refuse_inside(base: Any, name: str, target: str, found: list[str], blocks: set[str]) -> None:
    inside = next((path for path in found if _is_inside(path, blocks)), None)
    if inside is not None:
        outside = ", ".join(dict.fromkeys(path.rpartition(".")[2] for path in _linear_outside(base, blocks)))
        raise ModelError(
            f"learner.lora.target_modules: {target!r} is {inside} of {name!r}, in a block of experts, and these are "
            f"not trained; name others ({outside}), or all-linear for all of these"
        )


def _linear_outside(base: Any, blocks: set[str]) -> list[str]:
    """The linear layers below the head and outside these blocks; by their last names where those tell them apart."""
    head = base.get_output_embeddings()
    linear = [
        path
        for path, module in base.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head and not _is_inside(path, blocks)
    ]
    names = {path.rpartition(".")[2] for path in linear}
    others = {path.rpartition(".")[2] for path, _ in base.named_modules() if path not in linear}
    return linear if names & others else sorted(names)


def _names(base: Any, target: str) -> str:
    """What the linear layers below the head are called, those most like `target` first."""
    head = base.get_output_embeddings()
    linear = {
        path.rpartition(".")[2]: None
        for path, module in base.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }
    nearest = get_close_matches(target, [*linear, ALL_LINEAR], n=3, cutoff=0.5)
    found = [*nearest, *(name for name in linear if name not in nearest)]
    return ", ".join(found[:_SHOWN]) + (" and others" if len(found) > _SHOWN else "")
