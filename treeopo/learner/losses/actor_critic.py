"""Actor and critic (Tree-OPO Table 2, App. B). A batch's `advantages` are per-token rewards, which GAE turns into
advantages.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from treeopo.advantage.returns import generalized_advantages
from treeopo.learner.losses import Forward
from treeopo.learner.losses.policy_gradient import PolicyGradient
from treeopo.learner.microbatch import MicroBatch
from treeopo.learner.settings import CriticSettings
from treeopo.records import TrainBatch, TrainSequence


class Actor:
    """The policy gradient with GAE advantages; steps of the critic's warm-up are skipped."""

    def __init__(self, policy_gradient: PolicyGradient, critic: nn.Module, settings: CriticSettings) -> None:
        self._policy_gradient = policy_gradient
        self._critic = critic
        self._settings = settings
        self._warm = False

    def begin(self, batch: TrainBatch) -> bool:
        self._warm = batch.number >= self._settings.warmup_steps
        return self._policy_gradient.begin(batch) and self._warm

    def wants(self, sequence: TrainSequence) -> bool:
        return True

    def loss(self, micro: MicroBatch, forward: Forward) -> Tensor:
        with torch.no_grad():
            value_C = self._critic(micro, forward)
        return self._policy_gradient.loss(replace(micro, advantage_C=gae(micro, value_C, self._settings)), forward)

    def metrics(self) -> dict[str, float]:
        """critic_warmup: 1 as long as the policy waits for its critic."""
        return {**self._policy_gradient.metrics(), "learner/critic_warmup": float(not self._warm)}


class ValueRegression:
    """Mean squared error of the critic to the lambda-returns A_t + V_t, over the batch's tokens (App. B)."""

    def __init__(self, critic: nn.Module, settings: CriticSettings) -> None:
        self._critic = critic
        self._settings = settings
        self._tokens = 1
        self._sums = np.zeros(4)  # tokens, targets, their squares, squared errors

    def begin(self, batch: TrainBatch) -> bool:
        self._tokens = max(1, sum(row.completion_length for row in batch.sequences))
        self._sums = np.zeros(4)
        return True

    def wants(self, sequence: TrainSequence) -> bool:
        return True

    def loss(self, micro: MicroBatch, forward: Forward) -> Tensor:
        value_C: Tensor = self._critic(micro, forward)
        error_C = gae(micro, value_C.detach(), self._settings)
        target_C = value_C.detach() + error_C
        columns = (torch.ones_like(target_C), target_C, target_C.square(), error_C.square())
        self._sums += [column.sum().item() for column in columns]
        return (value_C - target_C).square().sum() / self._tokens

    def metrics(self) -> dict[str, float]:
        """critic_explained: 1 - mean squared error / variance of the targets; 0 is as good as their mean."""
        mean, square, error = self._sums[1:] / max(1.0, self._sums[0])
        variance = square - mean**2
        metrics = {"learner/critic_target_mean": mean}
        if variance > 0:
            metrics["learner/critic_explained"] = 1 - error / variance
        return metrics


def gae(micro: MicroBatch, value_C: Tensor, settings: CriticSettings) -> Tensor:
    """(C,) GAE advantages of a micro-batch's completions, without gradient."""
    end_B = np.cumsum(np.bincount(micro.row_C.cpu().numpy()))
    reward_C, values_C = (column.detach().double().cpu().numpy() for column in (micro.advantage_C, value_C))
    advantage_C = generalized_advantages(reward_C, values_C, end_B, settings.discount, settings.decay)
    return torch.as_tensor(advantage_C, dtype=value_C.dtype, device=value_C.device)
