"""Of a step's tokens, those that the engine stamped with the version that the learner holds: is it the same policy?"""

from dataclasses import dataclass

import torch
from torch import Tensor

from treeopo.learner.distributed import Team
from treeopo.learner.losses.corrections import LOG_LIMIT


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far the engine's log-probabilities are from the learner's, over `tokens` of the newest version; 1 at least.

    kl: k3 estimate of KL(engine || learner), nats a token (Schulman 2020). mass: mean ratio learner / engine, 1 for the
    same policy; mass_error is its standard error.
    """

    tokens: int
    kl: float
    mass: float
    mass_error: float


class NewestTokens:
    """Sums over the micro-batches of a step that is taken at `version`; they stay on the device until read."""

    def __init__(self, version: int) -> None:
        self._version = version
        self._sums: Tensor | float = 0.0  # tokens, k3, ratio, its square

    def add(self, version_C: Tensor, log_ratio_C: Tensor) -> None:
        """log_ratio_C = log pi_learner - log pi_engine, without dropout and without gradient; NaN where unknown."""
        log_ratio_C = log_ratio_C.double().clamp(-LOG_LIMIT, LOG_LIMIT)
        ratio_C = log_ratio_C.exp()
        columns = torch.stack([torch.ones_like(ratio_C), ratio_C - 1 - log_ratio_C, ratio_C, ratio_C.square()])
        self._sums = self._sums + columns[:, (version_C == self._version) & ~log_ratio_C.isnan()].sum(-1)

    def over(self, team: Team) -> Agreement | None:
        """Of the tokens of every rank; None if there was none."""
        sums = torch.zeros(4, dtype=torch.float64) + torch.as_tensor(self._sums).cpu()
        tokens, k3, ratio, square = team.all_reduce_sum(sums).tolist()
        if not tokens:
            return None
        variance = max(0.0, square / tokens - (ratio / tokens) ** 2)
        return Agreement(int(tokens), k3 / tokens, ratio / tokens, (variance / tokens) ** 0.5)
