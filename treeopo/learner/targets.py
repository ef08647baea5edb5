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

    Raises:
        ModelError: a name, or the pattern, is no layer's of the model `name`; the nearest that are come with it.
    """
    if wanted == ALL_LINEAR:
        return ALL_LINEAR
    layers = [path for path, _ in base.named_modules() if path]
    if isinstance(wanted, str):
        if not any(re.fullmatch(wanted, layer) for layer in layers):
            example = next(path for path, module in base.named_modules() if isinstance(module, nn.Linear | Conv1D))
            raise ModelError(
                f"learner.lora.target_modules: no layer of {name!r} matches {wanted!r}, which is taken as a pattern of "
                f"whole names, such as {example}; names alone (q_proj,v_proj) or all-linear do as well"
            )
        return wanted
    for target in wanted:
        if not any(layer == target or layer.endswith(f".{target}") for layer in layers):
            raise ModelError(
                f"learner.lora.target_modules: {name!r} has no layer {target!r}; it has {_names(base, target)}"
            )
    return list(wanted)


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
