"""Adapters that somebody saved: loaded over their base by PEFT itself, and refused where they do not fit it.

PEFT loads what matches by name and leaves the rest at its first values, so that an adapter of another model, or of the
same one under another wrapper, is the bare base in silence. Here every tensor must have its place and every place its
tensor. `check_servable` finds that out before anything large is loaded.
"""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from warnings import catch_warnings, simplefilter

import torch
from peft import PeftConfig, PeftModel, PeftModelForCausalLM
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper, load_peft_weights
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from treeopo.errors import ModelError, shortened

_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_UNFIT = (SafetensorError, UnpicklingError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, OSError)
"""What PEFT raises of files that are no adapter, or one of another model."""


def load_adapter(base: Any, name: str, adapter: Path, *, trainable: bool = False) -> PeftModel:
    """`base`, loaded from `name`, under the adapter saved in the directory `adapter`; its weights in float32.

    Raises:
        ModelError: the directory holds no adapter that PEFT reads, or one that does not fit this base.
    """
    return _load(base, name, adapter, _read(adapter), trainable=trainable)


def check_servable(name: str, adapter: Path, trust_remote_code: bool = False) -> None:
    """Whether `adapter` fits the base `name`, of which the configuration alone is read, and an engine can take it.

    Raises:
        ModelError: as for `load_adapter`, or the base cannot be read, or the adapter changes what a running engine does
            not take rightly (docs/vllm.md): an embedding and a head that are one weight, or a mixture's experts.
    """
    base = _without_weights(name, adapter, trust_remote_code)
    config = _read(adapter)
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = True  # others decompose the base's weights, which are not here
    with catch_warnings():
        simplefilter("ignore")  # of PEFT, about what becomes of tied weights
        adapted = _load(base, name, adapter, config, meta=True).get_base_model()
    ends = adapted.get_input_embeddings(), adapted.get_output_embeddings()
    tied = base.config.get_text_config().tie_word_embeddings and any(map(_is_changed, filter(None, ends)))
    experts = any(isinstance(layer, BaseTunerLayer) and of_experts(path) for path, layer in adapted.named_modules())
    for what, changed in (("embedding or the head, which are one weight", tied), ("experts", experts)):
        if changed:
            raise ModelError(
                f"{adapter}: changes the {what}, of {name!r}, and no engine takes that while it runs; merge it first: "
                f"treeopo export {adapter} --merge DIR, and then evaluate DIR"
            )


def of_experts(path: str) -> bool:
    """Whether a module or parameter of this name is one of a mixture's experts."""
    return "experts" in path.split(".")


def _is_changed(module: nn.Module) -> bool:
    """Whether an adapter over a base without weights has some of this module's, or sits on it."""
    wrapped = isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)
    return wrapped or not all(parameter.is_meta for parameter in module.parameters())


def _without_weights(name: str, adapter: Path, trust_remote_code: bool) -> Any:
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{adapter}: its base {name!r} cannot be loaded: {_reason(error)}; give another by --base"
        ) from None


def _read(adapter: Path) -> PeftConfig:
    if not any((adapter / name).is_file() for name in _WEIGHTS):  # PEFT would look for it on the hub
        raise ModelError(f"{adapter}: holds no weights of an adapter ({' or '.join(_WEIGHTS)})")
    try:
        config = PeftConfig.from_pretrained(str(adapter))
    except _UNFIT as error:
        raise ModelError(f"{adapter}/adapter_config.json: PEFT cannot read it: {_reason(error)}") from None
    unusable = {
        f"peft_type {getattr(config.peft_type, 'value', config.peft_type)}, which changes no weights": (
            config.is_prompt_learning or config.is_adaption_prompt
        ),
        "alora_invocation_tokens, which adapt a part of the text": getattr(config, "alora_invocation_tokens", None),
        "layer_replication, which makes another model": getattr(config, "layer_replication", None),
    }
    for what, given in unusable.items():
        if given:
            raise ModelError(f"{adapter}/adapter_config.json: {what}, cannot be merged; treeopo does not use such")
    return config


def _load(
    base: Any, name: str, adapter: Path, config: PeftConfig, *, trainable: bool = False, meta: bool = False
) -> PeftModel:
    """As `PeftModel.from_pretrained`, which keeps to itself which tensors it could not place."""
    config.inference_mode = not trainable
    _check_finite(adapter)
    renamed = getattr(base, "_checkpoint_conversion_mapping", {})
    try:
        model = PeftModelForCausalLM(base, config, autocast_adapter_dtype=True, low_cpu_mem_usage=meta)
        result = model.load_adapter(
            str(adapter),
            "default",
            is_trainable=trainable,
            torch_device="cpu",
            low_cpu_mem_usage=meta,
            key_mapping=renamed,
        )
    except KeyError as error:
        raise ModelError(f"{adapter}: is not an adapter of {name!r}: it lacks the tensor {error}") from None
    except _UNFIT as error:
        raise ModelError(f"{adapter}: is not an adapter of {name!r}: {_reason(error)}") from None
    for complaint, keys in (
        ("that model has no place for its tensor", result.unexpected_keys),
        ("it lacks the tensor", result.missing_keys),
    ):
        if keys:
            others = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise ModelError(
                f"{adapter}: is not an adapter of {name!r}: {complaint} {keys[0].replace('.default', '')}{others}; "
                "name the base that it was trained on, and save it by PEFT from that model without a wrapper"
            )
    return model


def _check_finite(adapter: Path) -> None:
    try:
        tensors = load_peft_weights(str(adapter), device="cpu")
    except _UNFIT as error:
        raise ModelError(f"{adapter}: the weights of the adapter cannot be read: {_reason(error)}") from None
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ModelError(f"{adapter}: tensor {name} holds infinite values or NaN; take an earlier checkpoint of it")


def _reason(error: Exception) -> str:
    """What PEFT or transformers say, without the heading of a list."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return shortened(lines[1] if len(lines) > 1 and lines[0].endswith(":") else lines[0])
