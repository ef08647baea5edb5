"""The policy gradient with importance weights and an optional PPO clip (Tree-OPO §3.4)."""

import math
from typing import assert_never

from torch import Tensor

from treeopo.learner.losses import Forward
from treeopo.learner.losses.corrections import ImportanceWeights, by_sequence, correct
from treeopo.learner.losses.mismatch import MismatchStats
from treeopo.learner.microbatch import MicroBatch
from treeopo.learner.settings import Aggregation, LearnerSettings
from treeopo.records import TrainBatch, TrainSequence


class PolicyGradient:
    """Its gradient is -(1/total) sum_t w_t a_t grad log pi(c_t): the g-hat of Tree-OPO §3.4 for w = 1."""

    def __init__(self, settings: LearnerSettings) -> None:
        self._settings = settings
        self._total = 1.0
        self._mismatch = MismatchStats()

    def begin(self, batch: TrainBatch) -> bool:
        self._total = total(batch, self._settings)
        self._mismatch = MismatchStats()
        return True

    def wants(self, sequence: TrainSequence) -> bool:
        return bool(sequence.advantages.any())

    def loss(self, micro: MicroBatch, forward: Forward) -> Tensor:
        settings = self._settings
        weights = correct(micro, forward, settings.correction, *settings.correction_bounds)
        objective_C, clipped_C = surrogate(
            forward.logprobs_C, micro.advantage_C, weights, settings.clip_low, settings.clip_high
        )
        log_ratio_C = (forward.current_C - micro.behaviour_C).detach()
        self._mismatch.add(log_ratio_C, micro.length_C, weights, clipped_C)
        return aggregate(objective_C, micro.length_C, settings.aggregation, self._total)

    def metrics(self) -> dict[str, float]:
        return self._mismatch.metrics(by_sequence=by_sequence(self._settings.correction))


def surrogate(
    logprobs_C: Tensor, advantage_C: Tensor, weights: ImportanceWeights, clip_low: float | None, clip_high: float | None
) -> tuple[Tensor, Tensor]:
    """Each token's objective, of value w_t a_t and gradient w_t a_t grad log pi(c_t), and where the clip stopped it.

    The clip is PPO's min(r a, clip(r) a) (Schulman et al. 2017, eq. 7): a token whose ratio has left
    [1 - clip_low, 1 + clip_high] on the side its advantage pushes to has no gradient.
    """
    ratio_C = weights.clip_ratio_C
    bounded_C = ratio_C.clamp(
        0.0 if clip_low is None else 1 - clip_low, math.inf if clip_high is None else 1 + clip_high
    )
    clipped_C = (ratio_C - bounded_C) * advantage_C > 0
    inner_C = (logprobs_C - logprobs_C.detach()).exp().where(~clipped_C, bounded_C / ratio_C)
    return weights.weight_C * advantage_C * inner_C, clipped_C


def total(batch: TrainBatch, settings: LearnerSettings) -> float:
    """What the sum over a batch's tokens is divided by: the whole batch's, so micro-batches add up to its gradient."""
    match settings.aggregation:
        case "sum" | "sequence-mean":
            return len(batch.sequences)
        case "token-mean":
            return sum(row.completion_length for row in batch.sequences)
        case "constant":
            return len(batch.sequences) * settings.constant_tokens
        case _ as unknown:
            assert_never(unknown)


def aggregate(objective_C: Tensor, length_C: Tensor, aggregation: Aggregation, total: float) -> Tensor:
    """The loss of one micro-batch: minus the objectives of its tokens, added up.

    sum: total = K sequences (Tree-OPO §3.4). sequence-mean: total = K, tokens divided by their sequence's length
    (GRPO). token-mean: total = all completion tokens of the batch (DAPO). constant: total = K times a length that no
    sequence decides (Dr. GRPO, Liu et al. 2025).
    """
    match aggregation:
        case "sum" | "token-mean" | "constant":
            return -objective_C.sum() / total
        case "sequence-mean":
            return -(objective_C / length_C).sum() / total
        case _:
            assert_never(aggregation)
