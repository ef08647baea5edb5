"""The losses, one small file each. The learner knows them by the protocol `Loss` alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from treeopo.learner.microbatch import MicroBatch
from treeopo.learner.settings import OptimizerSettings
from treeopo.records import TrainBatch, TrainSequence


@dataclass(frozen=True, slots=True)
class Forward:
    """The policy's forward pass over the C completion tokens of a micro-batch.

    logprobs_C carries gradient and is under dropout; current_C is the same without either, the distribution that the
    engine samples from. hidden_CH, through `head`, gives whole-vocabulary logits to the losses that need them.
    prefix_X: of the step tokens of the prefixes (`MicroBatch.prefix`), with gradient if `learner.prefix_loss` is on.
    """

    logprobs_C: Tensor
    current_C: Tensor
    hidden_CH: Tensor
    head: nn.Module
    prefix_X: Tensor = field(default_factory=lambda: torch.empty(0))


class Loss(Protocol):
    """One summand of the training loss. A step calls `begin` with its whole batch, then `loss` for each micro-batch."""

    def begin(self, batch: TrainBatch) -> bool:
        """Prepare: take the totals that micro-batches are divided by from the whole batch. False skips this step."""
        ...

    def wants(self, sequence: TrainSequence) -> bool:
        """Whether `sequence` has a gradient under this loss; one that no loss wants is not run through the model."""
        ...

    def loss(self, micro: MicroBatch, forward: Forward) -> Tensor:
        """The share of the batch's loss that this micro-batch adds."""
        ...

    def metrics(self) -> Mapping[str, float]:
        """Figures of the batch begun last; read once, after its last micro-batch."""
        ...


@dataclass(frozen=True, slots=True)
class SeparateLoss:
    """A loss with an optimiser of its own, stepped after the policy's on the gradient of this loss alone.

    `parameters` may be the adapter's too. `module`: weights that are not the policy's, kept in the checkpoint.
    """

    name: str
    loss: Loss
    optimizer: OptimizerSettings
    parameters: Sequence[nn.Parameter]
    module: nn.Module | None = None


Losses = Sequence[Loss | SeparateLoss]
"""A method's losses: those without an optimiser of their own are summed and stepped at the policy's rate."""
