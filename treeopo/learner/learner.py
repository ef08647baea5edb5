"""One optimiser step from one training batch: token ids, advantages and log-probabilities, and no algorithm."""

import math
import resource
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_cosine_schedule_with_warmup

from treeopo.errors import DivergedError
from treeopo.learner.logprobs import token_logprobs
from treeopo.learner.microbatch import MicroBatch, micro_batches
from treeopo.learner.objectives import Forward, Objective
from treeopo.learner.policy import LoraPolicy
from treeopo.learner.settings import LearnerSettings
from treeopo.records import TrainBatch

OPTIMIZER_FILE = "optimizer.pt"


class Learner:
    """Owns the policy, its optimiser and `version`, the number of batches seen; batch b is learned at version b.

    The loss is the sum of its `objectives`. Not thread-safe: the pipeline calls it from one thread at a time.
    """

    def __init__(
        self,
        policy: LoraPolicy,
        objectives: Sequence[Objective],
        settings: LearnerSettings,
        *,
        steps: int,
        temperature: float,
    ) -> None:
        self.policy = policy
        self.version = 0
        self._nonfinite = NonFinite()
        self._objectives = objectives
        self._settings = settings
        self._temperature = temperature
        optimizer = settings.optimizer
        self._optimizer = AdamW(policy.trainable, lr=optimizer.learning_rate, weight_decay=optimizer.weight_decay)
        self._schedule: LambdaLR = get_cosine_schedule_with_warmup(self._optimizer, optimizer.warmup_steps, steps)

    def step(self, batch: TrainBatch) -> dict[str, float]:
        """Learn from `batch`; returns this step's metrics. Samples without advantage are not run through the model.

        A loss or gradient that is not finite changes nothing but `version`: adapter, optimiser and schedule stay.

        Raises:
            DivergedError: that happened `max_nonfinite_steps` times in a row; the version stays at this batch's.
        """
        assert batch.number == self.version, f"batch {batch.number} reached a learner at version {self.version}"
        sequences = [row for row in batch.sequences if row.completion_length and row.advantages.any()]
        for objective in self._objectives:
            objective.begin(batch)
        loss_sum, padded_tokens = 0.0, 0
        self.policy.model.train()
        for micro in micro_batches(sequences, self._settings.microbatch_tokens, self.policy.device):
            forward = self._forward(micro)
            loss = torch.stack([objective.loss(micro, forward) for objective in self._objectives]).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            loss_sum += loss.item()
            padded_tokens += micro.input_ids_BT.numel()
        learning_rate = float(self._schedule.get_last_lr()[0])
        metrics = {
            "loss": loss_sum,
            "grad_norm": self._update(loss_sum),
            "nonfinite_steps": float(self._nonfinite.steps),
            "train_tokens": float(sum(len(row.token_ids) for row in sequences)),
            "padded_tokens": float(padded_tokens),
            "learning_rate": learning_rate,
            "learner_peak_mib": _peak_mib(self.policy.device),
        }
        for objective in self._objectives:
            metrics |= objective.metrics()
        self.version += 1
        return metrics

    def _forward(self, micro: MicroBatch) -> Forward:
        current_C = None
        if self._settings.lora.dropout > 0:
            with torch.no_grad(), _evaluating(self.policy.model):
                current_C = self._logprobs(micro, self._hidden(micro))
        hidden_CH = self._hidden(micro)
        logprobs_C = self._logprobs(micro, hidden_CH)
        return Forward(logprobs_C, logprobs_C.detach() if current_C is None else current_C, hidden_CH, self.policy.head)

    def _hidden(self, micro: MicroBatch) -> Tensor:
        hidden_BTH = self.policy.hidden_states(micro.input_ids_BT, micro.attention_mask_BT)
        return hidden_BTH[:, :-1].flatten(0, 1)[micro.position_C]

    def _logprobs(self, micro: MicroBatch, hidden_CH: Tensor) -> Tensor:
        return token_logprobs(hidden_CH, self.policy.head, micro.target_C, self._temperature)

    def _update(self, loss: float) -> float:
        """Step the optimiser and the schedule unless that would spoil them; the gradient's norm before clipping."""
        norm = float(clip_grad_norm_(self.policy.trainable, self._settings.optimizer.max_grad_norm))
        if self._nonfinite.ok(loss, norm):
            self._optimizer.step()
            self._schedule.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._nonfinite.in_a_row >= self._settings.max_nonfinite_steps:
            raise DivergedError(
                f"step {self.version}: loss {loss}, gradient norm {norm}, not finite for {self._nonfinite.in_a_row} "
                "steps in a row; lower learner.optimizer.learning_rate, or look for what is wrong in the batch"
            )
        return norm

    def save_state(self, directory: Path) -> None:
        """Write the adapter, the optimiser, the schedule and the random state into an existing directory."""
        self.policy.save_adapter(directory / "adapter")
        state = {
            "version": self.version,
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "nonfinite": (self._nonfinite.steps, self._nonfinite.in_a_row),
            "torch_rng": torch.get_rng_state(),
        }
        torch.save(state, directory / OPTIMIZER_FILE)

    def load_state(self, directory: Path) -> None:
        """Continue from what `save_state` wrote; the policy must have been loaded with that directory's adapter."""
        state: dict[str, Any] = torch.load(directory / OPTIMIZER_FILE, weights_only=True)
        self.version = state["version"]
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._nonfinite = NonFinite(*state["nonfinite"])
        torch.set_rng_state(state["torch_rng"])


@dataclass(slots=True)
class NonFinite:
    """Counts steps whose loss or gradient is infinite or not a number."""

    steps: int = 0
    in_a_row: int = 0

    def ok(self, loss: float, gradient_norm: float) -> bool:
        finite = math.isfinite(loss) and math.isfinite(gradient_norm)
        self.in_a_row = 0 if finite else self.in_a_row + 1
        self.steps += not finite
        return finite


def _peak_mib(device: torch.device) -> float:
    """Most memory held so far: allocated on a GPU, resident in this process on a CPU (Linux counts it in KiB)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextmanager
def _evaluating(model: torch.nn.Module) -> Any:
    """Without dropout: the distribution the engine samples from."""
    model.eval()
    try:
        yield
    finally:
        model.train()
