"""The policy gradient with importance weights (SPEC §6)."""

import torch
from torch import Tensor

from treeopo.learner.microbatch import MicroBatch
from treeopo.learner.objectives import Forward
from treeopo.learner.settings import Aggregation, Correction, LearnerSettings
from treeopo.records import TrainBatch


class PolicyGradient:
    """-(1/total) sum_t w_t a_t log pi(c_t); its gradient is the paper's g-hat (section 3.4) for w = 1."""

    def __init__(self, settings: LearnerSettings) -> None:
        self._settings = settings
        self._total = 1.0
        self._mismatch = Mismatch()

    def begin(self, batch: TrainBatch) -> None:
        by_token = self._settings.aggregation == "token-mean"
        self._total = sum(row.completion_length for row in batch.sequences) if by_token else len(batch.sequences)
        self._mismatch = Mismatch()

    def loss(self, micro: MicroBatch, forward: Forward) -> Tensor:
        settings = self._settings
        weight_C = importance_weights(
            forward.current_C, micro.behaviour_C, settings.correction, settings.correction_cap
        )
        self._mismatch.add(forward.current_C - micro.behaviour_C, settings.correction_cap)
        return policy_gradient_loss(
            forward.logprobs_C, micro.advantage_C, weight_C, micro.length_C, settings.aggregation, self._total
        )

    def metrics(self) -> dict[str, float]:
        return self._mismatch.metrics()


def importance_weights(current_C: Tensor, behaviour_C: Tensor, correction: Correction, cap: float) -> Tensor:
    """w_t = pi_theta(c_t) / pi_behaviour(c_t) per token, (C,), without gradient.

    none: 1. token-truncate: min(w_t, cap), the truncated importance sampling of Ionides (2008), per token as in
    Espeholt et al. (IMPALA, 2018): a bounded variance for a small bias.
    """
    ratio = (current_C.detach() - behaviour_C).exp()
    return ratio.clamp(max=cap) if correction == "token-truncate" else torch.ones_like(ratio)


def policy_gradient_loss(
    logprobs_C: Tensor, advantage_C: Tensor, weight_C: Tensor, length_C: Tensor, aggregation: Aggregation, total: float
) -> Tensor:
    """The term of one micro-batch.

    sum: total = K samples (the paper). sequence-mean: total = K, tokens divided by their sequence's length (GRPO).
    token-mean: total = all completion tokens of the batch (DAPO). The totals are the whole batch's, so micro-batches
    add up to exactly its gradient.
    """
    terms_C = weight_C * advantage_C * logprobs_C
    if aggregation == "sequence-mean":
        terms_C = terms_C / length_C
    return -terms_C.sum() / total


class Mismatch:
    """How far the policy that learns is from the one that sampled, over the tokens of a batch."""

    def __init__(self) -> None:
        self._ratio = self._square = self._kl = self._capped = self._tokens = 0.0

    def add(self, log_ratio_C: Tensor, cap: float) -> None:
        ratio_C = log_ratio_C.exp()
        self._ratio += ratio_C.sum().item()
        self._square += ratio_C.square().sum().item()
        self._kl += (ratio_C - 1 - log_ratio_C).sum().item()
        self._capped += (ratio_C > cap).sum().item()
        self._tokens += len(log_ratio_C)

    def metrics(self) -> dict[str, float]:
        """mismatch_kl: the k3 estimate of KL(behaviour || policy) per token (Schulman 2020); ess_share: the effective
        share of tokens, (sum w)^2 / (T sum w^2); capped_share: tokens whose weight was truncated.
        """
        if not self._tokens:
            return {"mismatch_kl": 0.0, "ess_share": 1.0, "capped_share": 0.0}
        return {
            "mismatch_kl": self._kl / self._tokens,
            "ess_share": self._ratio**2 / (self._tokens * self._square),
            "capped_share": self._capped / self._tokens,
        }
