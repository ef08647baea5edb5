"""Which weights a name means, and an engine that serves them: a model, an adapter directory or a training run."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from treeopo.engines.settings import Adapters
from treeopo.errors import ModelError, RunError
from treeopo.learner.checkpoints import Checkpoints
from treeopo.ports import Engine
from treeopo.records import Carrier
from treeopo.run_directory import RunDirectory

BASE = "base"
"""As `--against base`: the model under the adapter that is evaluated."""


@dataclass(frozen=True, slots=True)
class Served:
    """A base model (hub name or directory), with an adapter over it or none; `label` is what a person called it."""

    label: str
    base: str
    adapter: Path | None = None

    def without_adapter(self) -> "Served":
        return Served(BASE, self.base)


def resolve(name: str) -> Served:
    """What `name` means: a run (its trained adapter, else its newest checkpoint's), an adapter, or a model.

    Raises:
        RunError: a run without a checkpoint. ModelError: an adapter that does not name its base.
    """
    path = Path(name)
    if (path / "config.json").is_file() and (path / "metrics.jsonl").is_file():
        run = RunDirectory.open(path)
        checkpoint = Checkpoints(run.checkpoints, run.config.checkpoints_kept).latest()
        if not run.is_complete and checkpoint is None:
            raise RunError(f"{path}: the run has no checkpoint yet; let it reach one, or evaluate its student")
        path = run.adapter if run.is_complete or checkpoint is None else checkpoint / "adapter"
    if not (path / "adapter_config.json").is_file():
        return Served(name, name)
    try:
        base = json.loads((path / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (json.JSONDecodeError, AttributeError):
        raise ModelError(f"{path}/adapter_config.json is not the description of a PEFT adapter") from None
    if not base:
        raise ModelError(f"{path}/adapter_config.json names no base model (base_model_name_or_path)")
    return Served(name, base, path)


def adapters(models: Sequence[Served]) -> Adapters | None:
    """What an engine must make room for to serve one of `models` after the other."""
    found = [model.adapter for model in models if model.adapter is not None]
    if not found:
        return None
    configs = [json.loads((path / "adapter_config.json").read_text(encoding="utf-8")) for path in found]
    return Adapters(rank=max(config.get("r", 1) for config in configs), versions=2)


async def serve(engine: Engine, version: int, served: Served, trust_remote_code: bool = False) -> None:
    """Have an engine that was started on `served.base` answer with `served`'s adapter, as `version`."""
    if served.adapter is None:
        return
    if engine.carrier is Carrier.ADAPTER:
        await engine.publish(version, served.adapter)
        return
    import torch

    from treeopo.learner.policy import LoraPolicy
    from treeopo.learner.settings import LoraSettings

    policy = LoraPolicy.load(
        served.base,
        LoraSettings(),
        dtype=torch.bfloat16,
        device=torch.device("cpu"),
        adapter=served.adapter,
        trust_remote_code=trust_remote_code,
    )
    with TemporaryDirectory() as directory:
        weights = Path(directory) / "policy.safetensors"
        policy.save_merged(weights)
        await engine.publish(version, weights)
