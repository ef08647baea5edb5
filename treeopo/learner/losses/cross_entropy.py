"""Supervised fine-tuning: the mean negative log-likelihood of the batch's completion tokens."""

from torch import Tensor

from treeopo.learner.losses import Forward
from treeopo.learner.microbatch import MicroBatch
from treeopo.records import TrainBatch, TrainSequence


class CrossEntropy:
    """-(1/C) sum_t log pi(c_t) over all C completion tokens of the batch, in nats; transformers' own loss."""

    def __init__(self) -> None:
        self._total = 1

    def begin(self, batch: TrainBatch) -> bool:
        self._total = sum(row.completion_length for row in batch.sequences)
        return True

    def wants(self, sequence: TrainSequence) -> bool:
        return True

    def loss(self, micro: MicroBatch, forward: Forward) -> Tensor:
        return -forward.logprobs_C.sum() / self._total

    def metrics(self) -> dict[str, float]:
        return {}
