"""One optimiser step from one training batch: token ids, advantages and log-probabilities, and no algorithm."""

import math
import resource
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor

from treeopo.errors import DivergedError, OutOfMemoryError
from treeopo.learner.descent import Descent
from treeopo.learner.distributed import Team
from treeopo.learner.forward import PolicyForward
from treeopo.learner.forward_stats import ForwardStats
from treeopo.learner.losses import Loss, Losses, SeparateLoss
from treeopo.learner.newest_tokens import Agreement, NewestTokens
from treeopo.learner.policy import LoraPolicy
from treeopo.learner.settings import LearnerSettings
from treeopo.ports import Notify
from treeopo.records import FloatArray, TrainBatch, TrainSequence

OPTIMIZER_FILE = "optimizer.pt"


class Learner:
    """Owns the policy, its optimiser and `version`, the number of batches seen; batch b is learned at version b.
    `agreement` is of engine and learner about the last batch's tokens of its newest version.

    `losses` are summed and stepped together, but a `SeparateLoss` by its own optimiser. With a `team` each rank runs
    its share of the sequences and all take the same step; the losses' metrics are then of rank 0's share. Not
    thread-safe: the pipeline calls it from one thread at a time.
    """

    def __init__(
        self,
        policy: LoraPolicy,
        losses: Losses,
        settings: LearnerSettings,
        *,
        steps: int,
        temperature: float,
        team: Team | None = None,
        notify: Notify = lambda text: None,
    ) -> None:
        self.policy = policy
        self._team = team or Team()
        self.version = 0
        self.agreement: Agreement | None = None
        self._nonfinite = NonFinite()
        self._settings = settings
        self._forward = PolicyForward(policy, settings, temperature, notify)
        separate = [loss for loss in losses if isinstance(loss, SeparateLoss)]
        self._losses: dict[str, list[Loss]] = {
            "": [loss for loss in losses if not isinstance(loss, SeparateLoss)],
            **{each.name: [each.loss] for each in separate},
        }
        self._descents = {
            "": Descent(policy.trainable, settings.optimizer, steps),
            **{each.name: Descent(each.parameters, each.optimizer, steps) for each in separate},
        }
        self._modules = {each.name: each.module for each in separate if each.module is not None}

    def step(self, batch: TrainBatch) -> dict[str, float]:
        """Learn from `batch`; returns this step's metrics. Sequences that no loss wants are not run through the model.

        A loss or gradient that is not finite changes nothing but `version`: adapter, optimiser and schedule stay.

        Raises:
            DivergedError: that happened `max_nonfinite_steps` times in a row; the version stays at this batch's.
            OutOfMemoryError: it does not fit the memory, however it is cut; everything stays as it was.
        """
        assert batch.number == self.version, f"batch {batch.number} reached a learner at version {self.version}"
        sequences = [row for row in batch.sequences if row.completion_length and self._is_wanted(row)]
        self.policy.model.train()
        totals, stats, newest = self._gathered(batch, sequences)
        totals = self._add_over_team(totals, stats)
        self.agreement = newest.over(self._team)
        learning_rates = {name: descent.learning_rate for name, descent in self._descents.items()}
        norms = self._update(totals)
        metrics = {
            "learner/nonfinite_steps": float(self._nonfinite.steps),
            "learner/tokens": float(sum(len(row.token_ids) for row in sequences)),
            **stats.metrics(),
            **self._forward.fitting.metrics(),
            "learner/peak_mib": _peak_mib(self.policy.device),
        }
        for name in totals:
            prefix = f"{name}_" if name else ""
            metrics[f"learner/{prefix}loss"] = totals[name]
            metrics[f"learner/{prefix}grad_norm"] = norms[name]
            metrics[f"learner/{prefix}learning_rate"] = learning_rates[name]
        for loss in self._all_losses:
            metrics |= loss.metrics()
        self.version += 1
        return metrics

    @property
    def predicted_peak_mib(self) -> float | None:
        """What this process should hold at the peak of the last step; None where memory was too plentiful to plan."""
        peak = self._forward.fitting.predicted_peak
        return None if peak is None else peak / 2**20

    def _gathered(self, batch: TrainBatch, sequences: Sequence[TrainSequence]) -> "_Gathered":
        """`_gather`, as often as memory runs out; where it does for good in one process of a team, it does in all."""
        found: _Gathered | None = None
        failure = OutOfMemoryError("out of memory: another process of the team cannot go on")
        try:
            found = self._forward.fitting.survive(partial(self._gather, batch, sequences))
        except OutOfMemoryError as error:
            failure = error
        if self._team.all_reduce_max(int(found is None)) or found is None:
            for descent in self._descents.values():
                descent.forget()
            raise failure
        return found

    def _gather(self, batch: TrainBatch, sequences: Sequence[TrainSequence]) -> "_Gathered":
        """Each optimiser's gradient of this process's share, from nothing: in an earlier attempt memory ran out."""
        for descent in self._descents.values():
            descent.forget()
        begun = {name: [loss for loss in losses if loss.begin(batch)] for name, losses in self._losses.items()}
        begun = {name: losses for name, losses in begun.items() if losses}
        totals, stats, newest = dict.fromkeys(self._losses, 0.0), ForwardStats(), NewestTokens(batch.number)
        mine = self._team.share(self._forward.measured(sequences, batch.number))
        micros = self._forward.plan(mine, sum(descent.bytes_to_come for descent in self._descents.values()))
        idle = self._team.all_reduce_max(len(micros)) - len(micros) if self.policy.sharded else 0
        for micro in micros:
            forward = self._forward(micro, stats)
            newest.add(micro.version_C, forward.current_C - micro.behaviour_C)
            micro = micro.with_ratio_one(forward.current_C)
            found = {
                name: torch.stack([x.loss(micro, forward) for x in losses]).sum() for name, losses in begun.items()
            }
            self._backward(found)
            for name, value in found.items():
                totals[name] += value.item()
        self._match_other_ranks(idle, begun, sequences)
        return _Gathered(totals, stats, newest)

    @property
    def _all_losses(self) -> Iterable[Loss]:
        return chain.from_iterable(self._losses.values())

    def _is_wanted(self, sequence: TrainSequence) -> bool:
        return any(loss.wants(sequence) for loss in self._all_losses)

    def _backward(self, losses: Mapping[str, Tensor]) -> None:
        """Add the gradient of each optimiser's own loss to what it has gathered; all are of one forward pass."""
        for left, (name, loss) in zip(reversed(range(len(losses))), losses.items(), strict=True):
            self._descents[name].backward(loss, keep_graph=left > 0)

    def _match_other_ranks(self, passes: int, begun: Iterable[str], sequences: Sequence[TrainSequence]) -> None:
        """Zero-loss passes that match the other ranks' micro-batches: FSDP gathers a layer for all ranks or for none.

        Each is the shortest sequence, taken back through the policy as often as a real one is.
        """
        for _ in range(passes):
            (micro,) = self._forward.cut([min(sequences, key=lambda row: len(row.token_ids))])
            nothing = 0.0 * self._forward(micro, ForwardStats()).hidden_CH.sum()
            self._backward({name: nothing for name in begun if name not in self._modules})

    def reference_logprobs(self, sequences: Sequence[TrainSequence]) -> list[FloatArray]:
        """Log-probabilities (C,) of each sequence's completion under the base model."""
        return self._forward.reference_logprobs(sequences)

    def policy_logprobs(self, sequences: Sequence[TrainSequence]) -> list[FloatArray]:
        """Log-probabilities (C,) of each sequence's completion under the policy, without dropout."""
        return self._forward.policy_logprobs(sequences)

    def save_merged(self, path: Path) -> None:
        """Have the first process of the team write the policy's weights (`LoraPolicy.save_merged`)."""
        self.policy.save_merged(path if self._team.rank == 0 else None)

    def _add_over_team(self, losses: dict[str, float], stats: ForwardStats) -> dict[str, float]:
        """Make gradients and sums those of the whole batch; the losses of it."""
        for descent in self._descents.values():
            descent.add_over(self._team)
        stats.add_over(self._team)
        total = self._team.all_reduce_sum(torch.tensor(list(losses.values()), dtype=torch.float64)).tolist()
        return dict(zip(losses, total, strict=True))

    def _update(self, losses: dict[str, float]) -> dict[str, float]:
        """Step every optimiser and schedule unless that would spoil them; the gradients' norms before clipping."""
        norms = {name: descent.clip() for name, descent in self._descents.items()}
        loss, norm = sum(losses.values()), sum(norms.values())
        finite = self._nonfinite.ok(loss, norm)
        for descent in self._descents.values():
            if finite:
                descent.update()
            descent.forget()
        if self._nonfinite.in_a_row >= self._settings.max_nonfinite_steps:
            raise DivergedError(
                f"step {self.version}: loss {loss}, gradient norm {norm}, not finite for {self._nonfinite.in_a_row} "
                "steps in a row; lower learner.optimizer.learning_rate, or look for what is wrong in the batch"
            )
        return norms

    def save_state(self, directory: Path) -> None:
        """Write the adapter, the optimiser, the schedule and the random state into an existing directory."""
        self.policy.save_adapter(directory / "adapter")
        state = {
            "version": self.version,
            "optimizers": {name: descent.checkpoint() for name, descent in self._descents.items()},
            "nonfinite": (self._nonfinite.steps, self._nonfinite.in_a_row),
            "torch_rng": torch.get_rng_state(),
        }
        torch.save(state, directory / OPTIMIZER_FILE)
        for name, module in self._modules.items():
            save_model(module, str(directory / f"{name}.safetensors"))

    def load_state(self, directory: Path) -> None:
        """Continue from what `save_state` wrote; the policy must have been loaded with that directory's adapter."""
        state: dict[str, Any] = torch.load(directory / OPTIMIZER_FILE, weights_only=True)
        self.version = state["version"]
        for name, descent in self._descents.items():
            descent.restore(state["optimizers"][name])
        for name, module in self._modules.items():
            load_model(module, str(directory / f"{name}.safetensors"))
        self._nonfinite = NonFinite(*state["nonfinite"])
        torch.set_rng_state(state["torch_rng"])


class _Gathered(NamedTuple):
    """Of a step's passes: each optimiser's loss, and the figures."""

    totals: dict[str, float]
    stats: ForwardStats
    newest: NewestTokens


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
