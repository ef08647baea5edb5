"""Direct value optimisation (Zhang et al. 2025, arXiv 2502.13723): a step's log-ratio regresses on its gain in value.

What is taken from there and what is treeopo's: docs/methods.md, dvo.
"""

import torch
from torch import Tensor

from treeopo.learner.losses import Forward
from treeopo.learner.microbatch import MicroBatch
from treeopo.records import TokenColumn, TrainBatch, TrainSequence


class DirectValue:
    """(1/S) sum_steps ( beta sum_{tokens of the step} log(pi/pi_ref) - [V(s') - V(s)] )^2 over the S steps of a batch.

    Its optimum is pi(step | s) = pi_ref(step | s) exp([V(s') - V(s)] / beta) wherever these are a distribution.
    """

    def __init__(self, beta: float) -> None:
        self._beta = beta
        self._steps = 1.0
        self._seen = self._squares = self._log_ratio = 0.0

    def begin(self, batch: TrainBatch) -> bool:
        self._steps = float(sum(row.extras[TokenColumn.STEP_START].sum() for row in batch.sequences))
        self._seen = self._squares = self._log_ratio = 0.0
        return True

    def wants(self, sequence: TrainSequence) -> bool:
        return True

    def loss(self, micro: MicroBatch, forward: Forward) -> Tensor:
        is_first = micro.extras_C[TokenColumn.STEP_START] == 1
        step_C = is_first.cumsum(0) - 1  # tokens of a sequence are in order, so a step's are neighbours
        ratio_C = forward.logprobs_C - micro.extras_C[TokenColumn.REFERENCE]
        ratio_S = torch.zeros(int(is_first.sum()), dtype=ratio_C.dtype, device=ratio_C.device)
        ratio_S = ratio_S.index_add(0, step_C, ratio_C)
        error_S = self._beta * ratio_S - micro.extras_C[TokenColumn.GAIN][is_first]
        self._seen += len(error_S)
        self._squares += error_S.detach().square().sum().item()
        self._log_ratio += ratio_S.detach().sum().item()
        return error_S.square().sum() / self._steps

    def metrics(self) -> dict[str, float]:
        """value_error: root mean square of beta log-ratio minus gain; log_ratio_mean: of a step, in nats."""
        seen = self._seen or 1.0
        return {"learner/value_error": (self._squares / seen) ** 0.5, "learner/log_ratio_mean": self._log_ratio / seen}
