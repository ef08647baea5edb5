"""Are the engine's log-probabilities those of the distribution that the learner differentiates?

Every importance weight is a ratio of the two, so a sampler that truncates, another temperature or other weights would
bias every step without a sign of it. The first batch is compared before it is learned from, when both sides hold the
same policy: all that may differ is rounding.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from treeopo.records import FloatArray
from treeopo.rollout.settings import BehaviourSettings

FloatArray64 = npt.NDArray[np.float64]

_SAME_SHAPE = 0.9
"""Correlation above which two policies are one, but for scale or rounding."""


class Suspect(StrEnum):
    """What makes the two sides differ, in words for a person."""

    TEMPERATURE = (
        "one is a multiple of the other, so the temperature is suspect: the engine's log-probabilities leave it out, "
        "or it samples at another (a server wants --logprobs-mode processed_logprobs)"
    )
    TRUNCATION = (
        "the engine's are the higher ones, so its sampler is suspect: it samples from a part of the vocabulary (top-p, "
        "top-k or a penalty of the model's own; a server wants --generation-config vllm)"
    )
    PRECISION = "they differ by noise, so the precision is suspect: compare engine.dtype and learner.dtype"
    WEIGHTS = "they are unrelated, so the weights are suspect: the engine serves another model or policy version"


@dataclass(frozen=True, slots=True)
class BehaviourComparison:
    """How far apart the log-probabilities of `tokens` sampled tokens are.

    kl: k3 estimate of KL(engine || learner), nats a token (Schulman 2020). largest: of |difference|. mass: mean ratio
    learner / engine. Its expectation is the probability that the learner gives to all the tokens that the engine may
    sample: 1, and less for a sampler that truncates; mass_error is its standard error.
    """

    kl: float
    largest: float
    mass: float
    mass_error: float
    tokens: int
    suspect: Suspect

    def complaint(self, settings: BehaviourSettings) -> str | None:
        """Why a run must not start with this, in one line; None if it may."""
        if self.kl <= settings.max_kl and self.mass + 3 * self.mass_error >= settings.min_mass:
            return None
        return (
            f"engine and learner disagree about the same {self.tokens} tokens (KL {self.kl:.3g} a token, at most "
            f"{settings.max_kl:g} is allowed; mean ratio {self.mass:.3g}, at least {settings.min_mass:g}; largest "
            f"difference {self.largest:.3g}): {self.suspect}"
        )

    def metrics(self) -> dict[str, float]:
        return {"behaviour/kl": self.kl, "behaviour/difference_max": self.largest, "behaviour/mass": self.mass}


def compare_behaviour(engine_C: FloatArray, learner_C: FloatArray) -> BehaviourComparison:
    """Log-probabilities (C,) of the same tokens, sampled by the engine, from both sides; C >= 1."""
    engine, learner = engine_C.astype(np.float64), learner_C.astype(np.float64)
    log_ratio = np.clip(learner - engine, -50, 50)
    ratio = np.exp(log_ratio)
    return BehaviourComparison(
        kl=float(np.mean(ratio - 1 - log_ratio)),
        largest=float(np.abs(log_ratio).max()),
        mass=float(ratio.mean()),
        mass_error=float(ratio.std() / np.sqrt(len(ratio))),
        tokens=len(ratio),
        suspect=_suspect(engine, learner),
    )


def _suspect(engine: FloatArray64, learner: FloatArray64) -> Suspect:
    """The first explanation that fits; it means something only where the difference is more than rounding."""
    spread = engine.std() * learner.std()
    correlation = float(np.mean((engine - engine.mean()) * (learner - learner.mean())) / spread) if spread else 0.0
    if correlation < _SAME_SHAPE:
        return Suspect.WEIGHTS
    higher = engine - learner
    if np.quantile(higher, 0.05) > -0.1 * higher.mean():
        return Suspect.TRUNCATION
    slope = correlation * engine.std() / learner.std()
    return Suspect.TEMPERATURE if abs(np.log(slope)) > 0.1 else Suspect.PRECISION
