"""Which weights a name means, and an engine that serves them: a model, an adapter directory or a training run."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, assert_never

from treeopo.engines.settings import Adapters
from treeopo.errors import ModelError, RunError
from treeopo.learner.checkpoints import Checkpoints
from treeopo.ports import Engine
from treeopo.problems.spec import difficulty_of
from treeopo.records import WeightFormat
from treeopo.run.directory import RunDirectory

if TYPE_CHECKING:
    from treeopo.tiny import TinyModels

BASE = "base"
"""As `--against base`: the model under the adapter that is evaluated."""


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A base model (hub name or directory), with an adapter over it or none; `label` is what a person called it."""

    label: str
    base: str
    adapter: Path | None = None

    def without_adapter(self) -> "ModelRef":
        return ModelRef(BASE, self.base)


def resolve(name: str) -> ModelRef:
    """What `name` means: a run (its trained adapter, else its newest checkpoint's), an adapter, or a model.

    Raises:
        RunError: a run without a checkpoint. ModelError: an adapter that does not name its base.
    """
    path = Path(name)
    if RunDirectory.is_at(path):
        run = RunDirectory.open(path)
        checkpoint = Checkpoints(run.checkpoints, run.config.checkpoints_kept).latest()
        if not run.is_complete and checkpoint is None:
            raise RunError(f"{path}: the run has no checkpoint yet; let it reach one, or evaluate its student")
        path = run.adapter if run.is_complete or checkpoint is None else checkpoint / "adapter"
    if not (path / "adapter_config.json").is_file():
        return ModelRef(name, name)
    try:
        base = json.loads((path / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (json.JSONDecodeError, AttributeError):
        raise ModelError(f"{path}/adapter_config.json is not the description of a PEFT adapter") from None
    if not base:
        raise ModelError(f"{path}/adapter_config.json names no base model (base_model_name_or_path)")
    return ModelRef(name, base, path)


def embedded(problems: str) -> "TinyModels":
    """The embedded student and teacher that belong to a problem set, made now if this machine has not made them yet."""
    from treeopo.tiny import ensure_tiny

    return ensure_tiny(difficulty_of(problems))


def check_fit(models: Sequence[ModelRef], trust_remote_code: bool) -> None:
    """Find out, before an engine starts, whether every adapter among `models` is one of its base.

    Raises:
        ModelError: one is not, or its base cannot be loaded.
    """
    for model in models:
        if model.adapter is not None:
            from treeopo.learner.adapters import check_adapter

            check_adapter(model.base, model.adapter, trust_remote_code)


def adapters(models: Sequence[ModelRef]) -> Adapters | None:
    """What an engine must make room for to serve one of `models` after the other."""
    found = [model.adapter for model in models if model.adapter is not None]
    if not found:
        return None
    configs = [json.loads((path / "adapter_config.json").read_text(encoding="utf-8")) for path in found]
    return Adapters(rank=max(config.get("r", 1) for config in configs), versions=2)


async def serve(engine: Engine, version: int, ref: ModelRef, trust_remote_code: bool = False) -> None:
    """Have an engine that was started on `ref.base` answer with its adapter, as `version`."""
    if ref.adapter is None:
        return
    match engine.weight_format:
        case WeightFormat.ADAPTER:
            await engine.publish(version, ref.adapter)
        case WeightFormat.MERGED:
            with TemporaryDirectory() as directory:
                weights = Path(directory) / "policy.safetensors"
                _save_merged(ref, weights, trust_remote_code)
                await engine.publish(version, weights)
        case _:
            assert_never(engine.weight_format)


def _save_merged(ref: ModelRef, path: Path, trust_remote_code: bool) -> None:
    import torch

    from treeopo.learner.policy import LoraPolicy
    from treeopo.learner.settings import LoraSettings

    policy = LoraPolicy.load(
        ref.base,
        LoraSettings(),
        dtype=torch.bfloat16,
        device=torch.device("cpu"),
        adapter=ref.adapter,
        trust_remote_code=trust_remote_code,
    )
    policy.save_merged(path)
