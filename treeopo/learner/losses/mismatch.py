"""Statistics of the importance ratios: KL to the behaviour policy, effective sample size, share of bounded weights."""

import torch
from torch import Tensor

from treeopo.learner.losses.corrections import LOG_LIMIT, ImportanceWeights


class MismatchStats:
    """Sums over the completion tokens of a batch, micro-batch by micro-batch; they stay on the device until read."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._furthest = torch.zeros(())

    def add(self, log_ratio_C: Tensor, length_C: Tensor, weights: ImportanceWeights, clipped_C: Tensor) -> None:
        """log_ratio_C = log pi_current - log pi_behaviour; length_C is of the sequence each token belongs to."""
        ratio_C = log_ratio_C.clamp(-LOG_LIMIT, LOG_LIMIT).exp()
        of_sequence_C = weights.judged_C / length_C  # a sequence's ratio stands at each of its tokens
        columns = {
            "tokens": torch.ones_like(ratio_C),
            "k1": -log_ratio_C,
            "k3": ratio_C - 1 - log_ratio_C,
            "ratio": ratio_C,
            "ratio_square": ratio_C.square(),
            "sequences": 1 / length_C,
            "sequence_ratio": of_sequence_C,
            "sequence_ratio_square": of_sequence_C * weights.judged_C,
            "weight": weights.weight_C,
            "limited": weights.limited_C,
            "clipped": clipped_C,
        }
        for name, column_C in columns.items():
            self._sums[name] = self._sums.get(name, 0) + column_C.sum(dtype=torch.float64)
        self._furthest = torch.maximum(self._furthest.to(log_ratio_C), log_ratio_C.abs().max())

    def metrics(self, *, by_sequence: bool) -> dict[str, float]:
        """Per completion token that was learned from; empty if there was none.

        mismatch_kl, mismatch_kl_k1: the k3 and k1 estimates of KL(behaviour || policy) (Schulman 2020).
        log_ratio_max: the largest |log ratio|. ess_share: effective share of tokens under their raw ratios,
        (sum r)^2 / (T sum r^2) (Kong 1992); ess_share_sequences: of sequences, where the correction judges those.
        weight_mean: of the weights applied. limited_share: tokens whose ratio was truncated or masked.
        clip_share: tokens that the PPO clip stopped.
        """
        sums = {name: total.item() for name, total in self._sums.items()}
        if not sums:
            return {}
        tokens = sums["tokens"]
        metrics = {
            "learner/mismatch_kl": sums["k3"] / tokens,
            "learner/mismatch_kl_k1": sums["k1"] / tokens,
            "learner/log_ratio_max": self._furthest.item(),
            "learner/ess_share": sums["ratio"] ** 2 / (tokens * sums["ratio_square"]),
            "learner/weight_mean": sums["weight"] / tokens,
            "learner/limited_share": sums["limited"] / tokens,
            "learner/clip_share": sums["clipped"] / tokens,
        }
        if by_sequence:
            metrics["learner/ess_share_sequences"] = sums["sequence_ratio"] ** 2 / (
                sums["sequences"] * sums["sequence_ratio_square"]
            )
        return metrics
