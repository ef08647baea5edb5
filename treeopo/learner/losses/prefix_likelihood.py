"""The likelihood of prefixes that lie on a solved trace, beside the policy gradient.

UFT (Liu et al. 2025, arXiv 2505.16984) adds the log-likelihood of its hints to the objective with weight 0.001;
Prefix-RFT (Huang et al. 2025, arXiv 2507.01679) trains the tokens of a demonstration's prefix with those sampled behind
it. Without this a prefix is a start state and nothing more.
"""

import torch
from torch import Tensor

from treeopo.learner.losses import Forward
from treeopo.learner.microbatch import MicroBatch
from treeopo.records import TrainBatch, TrainSequence


class PrefixLikelihood:
    """-(weight / X) sum log pi(token) over the X step tokens of the batch's solved prefixes, each counted in every
    sequence that has it. The question's tokens are not among them.
    """

    def __init__(self, weight: float) -> None:
        self._weight = weight
        self._total = 0
        self._sums = torch.zeros(2, dtype=torch.float64)  # tokens, their log-probabilities

    def begin(self, batch: TrainBatch) -> bool:
        self._total = sum(row.step_tokens for row in batch.sequences if row.completion_length and self.wants(row))
        self._sums = torch.zeros(2, dtype=torch.float64)
        return self._total > 0

    def wants(self, sequence: TrainSequence) -> bool:
        return sequence.prefix_is_solved and sequence.step_tokens > 0

    def loss(self, micro: MicroBatch, forward: Forward) -> Tensor:
        logprob = (micro.prefix.solved_X * forward.prefix_X).sum()
        self._sums += torch.stack([micro.prefix.solved_X.sum(), logprob.detach()]).cpu()
        return -self._weight * logprob / self._total

    def metrics(self) -> dict[str, float]:
        """prefix_loss: negative log-likelihood of these tokens, mean in nats, under dropout if there is any."""
        tokens, logprob = self._sums.tolist()
        return {"learner/prefix_loss": -logprob / tokens} if tokens else {}
