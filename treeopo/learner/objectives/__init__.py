"""The terms a loss is made of, one small file each; the learner knows nothing of them but this protocol."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from treeopo.learner.microbatch import MicroBatch
from treeopo.records import TrainBatch


@dataclass(frozen=True, slots=True)
class Forward:
    """What the policy says of a micro-batch's C completion tokens.

    logprobs_C carries gradient and is under dropout; current_C is the same without either, the distribution that the
    engine samples from. hidden_CH, through `head`, gives whole-vocabulary logits to the terms that need them.
    """

    logprobs_C: Tensor
    current_C: Tensor
    hidden_CH: Tensor
    head: nn.Module


class Objective(Protocol):
    """One term. `begin` sees the whole batch, so that the losses of its micro-batches add up to the batch's loss."""

    def begin(self, batch: TrainBatch) -> None: ...

    def loss(self, micro: MicroBatch, forward: Forward) -> Tensor: ...

    def metrics(self) -> Mapping[str, float]:
        """Of the batch begun last; read once, after its last micro-batch."""
        ...
