"""What adapter_config.json says, read without torch: over which base, and whether engines can use it beside that."""

import codecs
import json
import re
from pathlib import Path
from typing import Any

from treeopo.engines.settings import Adapters
from treeopo.errors import ModelError, shortened

CONFIG = "adapter_config.json"

_PLAIN = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out", "lora_dropout"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "ensure_weight_tying"),
    *("inference_mode", "runtime_config", "megatron_core", "qalora_group_size"),
    *("eva_config", "corda_config", "loftq_config", "lora_ga_config"),  # for the start that init_lora_weights names
}
"""What may be set of an adapter that engines can use beside the base: low-rank A and B on linear layers alone, scaled
by alpha and rank. Whatever else is set changes what the adapter means (DoRA, modules_to_save, what is yet to come)."""

_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""Of `init_lora_weights`; others (PiSSA, OLoRA, LoftQ) change the base when PEFT loads the adapter."""

_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")

_OTHER_FORMATS = ("*.gguf", "*.onnx", "*.msgpack", "*.h5", "*.tflite", "original/*")
"""Files that a model's repository may hold beside those that transformers reads."""


def read_config(adapter: Path) -> dict[str, Any]:
    """adapter_config.json of the directory `adapter`.

    Raises:
        ModelError: it is not a JSON object.
    """
    content = (adapter / CONFIG).read_bytes()
    if content.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ModelError(
            f"{adapter}/{CONFIG}: begins with a byte order mark, which PEFT refuses; save it as UTF-8 without one"
        )
    try:
        config = json.loads(content)
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise ModelError(f"{adapter}/{CONFIG} is not the description of a PEFT adapter, which is a JSON object")
    return config


def base_of(adapter: Path, given: str | None = None, student: str | None = None) -> tuple[str, str]:
    """The base that `adapter` goes over, as (what to load it from, what to call it): `given`, or the directory
    `student` of its run, or what it names itself.

    A `revision` beside the name is honoured: loaded is the directory of the hub's cache that holds it, and any other
    revision would be another model.

    Raises:
        ModelError: it names none, one that is not there, or a revision that cannot be had.
    """
    config, key = read_config(adapter), "base_model_name_or_path"
    otherwise = "give it by --base, or write it there"
    named = config.get(key) if given is None else given
    if not named:
        raise ModelError(f"{adapter}/{CONFIG} names no base model ({key}); {otherwise}")
    if not isinstance(named, str):
        raise ModelError(f"{adapter}/{CONFIG}: {key} is {shortened(repr(named), 60)}, and must be text; {otherwise}")
    if given is None and student is not None and Path(student).is_absolute() and Path(student).is_dir():
        return student, student  # it may have moved, and a relative name be another model here
    place = Path(named).expanduser()
    if (place / CONFIG).is_file():
        raise ModelError(
            f"{adapter}: its base {named} is an adapter itself; merge that first (treeopo export {named} --merge DIR), "
            "and give DIR by --base"
        )
    if place.is_dir():
        return str(place), named
    if not _HUB_NAME.fullmatch(named):
        source = "--base" if given else f"{adapter}/{CONFIG}: {key}"
        seen_from = "" if place.is_absolute() else f" seen from {Path.cwd()}"
        raise ModelError(f"{source} is {named!r}, and there is no such directory{seen_from}; {otherwise}")
    revision = config.get("revision")
    if given is not None or revision in (None, "", "main"):
        return named, named
    return _snapshot(adapter, named, str(revision)), named


def _snapshot(adapter: Path, base: str, revision: str) -> str:
    """The directory that holds `base` as it was at `revision`, fetched now if this machine does not have it."""
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(base, revision=revision, ignore_patterns=list(_OTHER_FORMATS))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{adapter}/{CONFIG}: revision {revision!r} of {base!r} cannot be had: {shortened(str(error), 120)}; "
            "give a directory that holds it by --base"
        ) from None


def room_for(adapters: list[Path]) -> Adapters:
    """What an engine must make room for to serve one of `adapters` after the other."""
    configs = [read_config(adapter) for adapter in adapters]
    ranks = [rank for config in configs for rank in (config.get("r", 1), *(config.get("rank_pattern") or {}).values())]
    reasons = map(_merged_because, adapters, configs)
    return Adapters(rank=max(ranks), versions=2, merged_because=next(filter(None, reasons), None))


def _merged_because(adapter: Path, config: dict[str, Any]) -> str | None:
    """Why engines cannot use this adapter beside its base; None if they can."""
    from safetensors import safe_open

    if config.get("peft_type") != "LORA":
        return f"{adapter}: peft_type {config.get('peft_type')}"
    plain = {"bias": ("none",), "init_lora_weights": _PLAIN_STARTS}
    for key in sorted(config.keys() - _PLAIN):
        if config[key] and config[key] not in plain.get(key, ()):
            return f"{adapter}: {key} {config[key]!r}"
    weights = adapter / "adapter_model.safetensors"
    if weights.is_file():
        with safe_open(weights, framework="np") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping
                if not name.endswith((".lora_A.weight", ".lora_B.weight")) or ".lm_head." in name:
                    return f"{adapter}: tensor {name}"
    return None
