"""What decides a learner before its first step: written once, and the same for every process of a team."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from treeopo.learner.distributed import Team
from treeopo.learner.learner import Learner
from treeopo.learner.losses import Losses
from treeopo.learner.policy import LoraPolicy
from treeopo.learner.settings import LearnerSettings
from treeopo.ports import Notify

MakeLosses = Callable[[LoraPolicy], Losses]
"""The losses of a method for a policy; it travels to the other processes of a team, so it must be picklable."""


@dataclass(frozen=True, slots=True)
class LearnerSpec:
    """The student `model` (hub name or directory) and how it learns. steps: of the whole run, over which the learning
    rate falls. temperature: that the completions are sampled at. served_dtype: of the engine, by torch's name, if that
    is known. checkpoint: what to go on from (None: the first step).
    """

    model: str
    settings: LearnerSettings
    losses: MakeLosses
    steps: int
    temperature: float
    seed: int
    trust_remote_code: bool = False
    served_dtype: str | None = None
    checkpoint: Path | None = None

    def load(self, team: Team | None = None, notify: Notify = lambda text: None) -> Learner:
        """The student with a fresh adapter, or with the state of `checkpoint`. notify: told what the learner has to say
        in the thread in which it learns.

        Raises:
            ModelError: the model cannot be loaded or adapted.
        """
        settings, device = self.settings, (team or Team()).device
        dtype = getattr(torch, settings.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
        _make_deterministic(settings.deterministic)
        torch.manual_seed(self.seed)
        policy = LoraPolicy.load(
            self.model,
            settings.lora,
            dtype=dtype,
            device=device,
            adapter=self.checkpoint / "adapter" if self.checkpoint else None,
            trust_remote_code=self.trust_remote_code,
            sharded=settings.fsdp,
        )
        policy.served_dtype = getattr(torch, self.served_dtype) if self.served_dtype else None
        learner = Learner(
            policy,
            self.losses(policy),
            settings,
            steps=self.steps,
            temperature=self.temperature,
            team=team,
            notify=notify,
        )
        if self.checkpoint:
            learner.load_state(self.checkpoint)
        return learner


def _make_deterministic(wanted: bool) -> None:
    """Of the whole process: torch has one switch. cuBLAS reads its workspace size when it is first used."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(wanted)
