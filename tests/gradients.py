"""The gradients that a learner hands to its optimisers, seen by PyTorch's own hook as `optimizer.step` is called."""

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from treeopo.learner.learner import Learner
from treeopo.records import TrainBatch


def step(learner: Learner, batch: TrainBatch) -> tuple[list[Tensor], dict[str, float]]:
    """Take one step: the gradient of the policy's weights, clipped, once for each optimiser, and the step's metrics."""
    seen: list[Tensor] = []

    def record(optimizer: Optimizer, args: object, kwargs: object) -> None:
        seen.extend(weight.grad.clone() for weight in learner.policy.trainable if weight.grad is not None)

    hook = register_optimizer_step_pre_hook(record)
    try:
        metrics = learner.step(batch)
    finally:
        hook.remove()
    return seen, metrics


def gradient(learner: Learner, batch: TrainBatch) -> tuple[list[Tensor], dict[str, float]]:
    """The same, with the policy's weights put back, so that another learner over them starts from the same ones."""
    before = [weight.detach().clone() for weight in learner.policy.trainable]
    found = step(learner, batch)
    with torch.no_grad():
        for weight, value in zip(learner.policy.trainable, before, strict=True):
            weight.copy_(value)
    return found
