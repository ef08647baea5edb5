"""Base and adapter multiplied out, whatever kind of adapter PEFT can merge: what `export` writes and `eval` serves."""

import os
from collections import Counter
from functools import reduce
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from warnings import catch_warnings, simplefilter

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from treeopo.errors import ModelError, shortened
from treeopo.learner.adapters import load_adapter, of_experts
from treeopo.learner.policy import load_model
from treeopo.learner.rounding import rounded

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""As safetensors name them; of others (quantised weights) nothing is merged."""


_ONE_FILE = 2**60
"""Bytes of a shard of weights: an engine takes one file."""


def merged_model(name: str, adapter: Path, trust_remote_code: bool = False) -> Any:
    """The base `name` with `adapter` merged into it by PEFT: a plain transformers model in the dtypes of the base's
    files. Each layer is merged in float32 and rounded once, without bias (`treeopo.learner.rounding`).

    Raises:
        ModelError: the base cannot be loaded, or is quantised; or the adapter is not of it or cannot be merged.
    """
    dtypes = weight_dtypes(name)
    base = load_model(name, _holding(set(dtypes.values())) if dtypes else "auto", trust_remote_code)
    if getattr(base.config, "quantization_config", None):
        raise ModelError(
            f"{adapter}: its base {name!r} is quantised, and nothing can be merged into that; "
            "give the model before that by --base"
        )
    commonest = Counter(dtypes.values()).most_common(1)[0][0] if dtypes else base.dtype
    with catch_warnings():
        simplefilter("ignore")  # of PEFT, about tied weights, which are looked after here
        adapted = load_adapter(base, name, adapter)
        try:
            model = _merge(adapted)
        except (RuntimeError, ValueError, AttributeError) as error:  # NotImplementedError is a RuntimeError
            raise ModelError(f"{adapter}: PEFT cannot merge it: {shortened(str(error))}") from None
    for key, parameter in model.named_parameters():
        parameter.data = rounded(parameter.data, dtypes.get(key, commonest))
    return model


def _holding(dtypes: set[torch.dtype]) -> torch.dtype:
    """The smallest dtype that holds all of these without loss."""
    return reduce(torch.promote_types, dtypes)


def _merge(adapted: PeftModel) -> Any:
    """Merge layer by layer in float32, so that no second copy of the base is held; then take PEFT's wrappers off."""
    ends = _tied_ends(adapted)
    if ends:
        ends[1].weight = nn.Parameter(ends[1].weight.detach().clone())  # else one end's change would reach the other
    # Inner layers first: one inside another is merged before the outer one is rounded.
    for layer in reversed([module for module in adapted.modules() if isinstance(module, BaseTunerLayer)]):
        base = layer.get_base_layer()
        dtype = next(base.parameters()).dtype
        layer.float()
        layer.merge(safe_merge=True)
        for parameter in base.parameters():
            parameter.data = rounded(parameter.data, dtype)
    if ends and torch.equal(ends[0].weight, ends[1].weight):
        ends[1].weight = ends[0].weight
    return adapted.base_model.merge_and_unload(safe_merge=True)


def _tied_ends(adapted: PeftModel) -> tuple[Any, Any] | None:
    """Embedding and head, if they are one weight and an adapter sits on one of them or on both."""
    base = adapted.get_base_model()
    ends = base.get_input_embeddings(), base.get_output_embeddings()
    if not any(isinstance(end, BaseTunerLayer) for end in ends):
        return None
    first, last = (end.get_base_layer() if isinstance(end, BaseTunerLayer) else end for end in ends)
    return (first, last) if first.weight is last.weight else None


def save_for_engine(model: Any, path: Path) -> None:
    """Write a merged model's weights for an engine that serves its base: one file, what `save_pretrained` writes but
    for a mixture's experts, which `check_servable` has seen to be the base's.
    """
    with TemporaryDirectory(dir=path.parent) as beside:
        model.save_pretrained(beside, max_shard_size=_ONE_FILE)
        whole = Path(beside) / "model.safetensors"
        with safe_open(whole, framework="pt") as tensors:
            names = list(tensors.keys())
            kept = [name for name in names if not of_experts(name)]
            if len(kept) < len(names):
                save_file({name: tensors.get_tensor(name) for name in kept}, path)
                return
        os.replace(whole, path)


def weight_dtypes(name: str) -> dict[str, torch.dtype]:
    """The dtype of every floating-point tensor in the safetensors files of a model; empty if it has none.

    Its configuration does not tell: that may name another dtype, or none.
    """
    found = {}
    for file in _safetensors_files(name):
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - no mapping
                dtype = _DTYPES.get(tensors.get_slice(key).get_dtype())
                if dtype is not None:
                    found[key] = dtype
    return found


def _safetensors_files(name: str) -> list[str]:
    """Where transformers would read the weights: one file, or those of an index."""
    try:
        single = cached_file(name, "model.safetensors")
        return [single] if single else []
    except OSError:
        pass
    try:
        index = cached_file(name, "model.safetensors.index.json")
        return list(get_checkpoint_shard_files(name, index)[0]) if index else []
    except OSError:
        return []
