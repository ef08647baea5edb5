"""The terms a loss is made of, one small file each; the learner knows nothing of them but this protocol."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from treeopo.learner.microbatch import MicroBatch
from treeopo.learner.settings import OptimizerSettings
from treeopo.records import TrainBatch, TrainSequence


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
    """One term of a loss, asked about each step's whole batch first and then about its micro-batches."""

    def begin(self, batch: TrainBatch) -> bool:
        """Whether this step is for it; sees the whole batch, so that its micro-batches' losses add up to its loss."""
        ...

    def wants(self, sequence: TrainSequence) -> bool:
        """Whether it has anything to learn from `sequence`; what no term wants is not run through the model."""
        ...

    def loss(self, micro: MicroBatch, forward: Forward) -> Tensor:
        """Its share of the batch's loss, in a step that is for it."""
        ...

    def metrics(self) -> Mapping[str, float]:
        """Of the batch begun last; read once, after its last micro-batch."""
        ...


@dataclass(frozen=True, slots=True)
class Separate:
    """A term with an optimiser of its own, stepped on that term alone after the policy's.

    `parameters` may be the adapter's too. `module`: weights that are not the policy's, kept in the checkpoint.
    """

    name: str
    objective: Objective
    optimizer: OptimizerSettings
    parameters: Sequence[nn.Parameter]
    module: nn.Module | None = None


Terms = Sequence[Objective | Separate]
"""A method's loss: terms without an optimiser of their own are summed and stepped at the policy's rate."""
