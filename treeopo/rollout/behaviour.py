"""Are the engine's log-probabilities those of the distribution that the learner differentiates?

Every importance weight is a ratio of the two, so a sampler that truncates, another temperature or other weights would
bias every step without a sign of it. The first batch is compared before it is learned from, when both sides hold the
same policy: all that may differ is rounding. Later an engine may go on with older weights than it says: from then on
each step's tokens of the newest version are held against what the first comparison found.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
import numpy.typing as npt

from treeopo.records import FloatArray, known_logprobs
from treeopo.rollout.settings import BehaviourSettings

FloatArray64 = npt.NDArray[np.float64]

_SAME_SHAPE = 0.9
"""Correlation above which two policies are one, but for scale or rounding."""

_ROUNDING = 1e-5
"""A KL that is never held against an engine, however well the first tokens agreed: nats a token."""

_EXACT = 1e-7
"""Two sides in float32 stay below it."""

_TELLING_TOKENS = 1000
"""Fewer do not say how much the sides round: 40 that a bfloat16 engine was nearly certain of had a KL of 5e-13."""

_OUTLIERS = 0.25
"""Where the sides round, single tokens carry most of the difference: so many nats of a comparison are let pass whatever
its size. A bfloat16 engine that served what it said had 5e-4 a token over 103 tokens after 5e-6 over the first ones.
"""

FEWEST_TOKENS = 64
"""A comparison of fewer says nothing."""

PATIENCE = 2
"""So many comparisons in a row must fail: one can be bad luck."""


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
    LEARNER = (
        "the learner's own are not finite, so its model is suspect: weights that hold NaN, or a learner.dtype that is "
        "too narrow for them"
    )
    ENGINE = (
        "the engine's are all NaN or infinite, so its numerics are suspect: weights that hold NaN, or an engine.dtype "
        "that is too narrow for them"
    )
    WEIGHTS = "they are unrelated, so the weights are suspect: the engine serves another model or policy version"


class Agreement(Protocol):
    """How far apart the log-probabilities of `tokens` sampled tokens are.

    kl: k3 estimate of KL(engine || learner), nats a token (Schulman 2020). mass: mean ratio learner / engine. Its
    expectation is the probability that the learner gives to all the tokens that the engine may sample: 1, and less for
    a sampler that truncates; mass_error is its standard error.
    """

    @property
    def kl(self) -> float: ...

    @property
    def mass(self) -> float: ...

    @property
    def mass_error(self) -> float: ...

    @property
    def tokens(self) -> int: ...


@dataclass(frozen=True, slots=True)
class BehaviourComparison:
    """An `Agreement` with more to say: the largest |difference|, and what the disagreement looks like."""

    kl: float
    largest: float
    mass: float
    mass_error: float
    tokens: int
    suspect: Suspect

    def complaint(self, settings: BehaviourSettings) -> str | None:
        """Why a run must not start with this, in one line; None if it may."""
        if _agree(self, settings.max_kl, settings.min_mass):
            return None
        return (
            f"engine and learner disagree about the same {self.tokens} tokens (KL {self.kl:.3g} a token, at most "
            f"{settings.max_kl:g} is allowed; mean ratio {self.mass:.3g}, at least {settings.min_mass:g}; largest "
            f"difference {self.largest:.3g}): {self.suspect}"
        )

    def metrics(self) -> dict[str, float]:
        return {**behaviour_metrics(self), "behaviour/difference_max": self.largest}


class BehaviourWatch:
    """Does the engine still serve the policy that it says? Later comparisons are judged by those of the run's first
    batch: again rounding is all that may differ.
    """

    def __init__(self, settings: BehaviourSettings, first: Agreement) -> None:
        self._min_mass = settings.min_mass
        self._max_kl = settings.max_kl
        self._growth = settings.max_growth
        self._usual_kl = _ROUNDING
        self._outliers = _OUTLIERS
        self._failed = 0
        self.trust(first)

    @property
    def doubts(self) -> bool:
        """Whether the last comparison failed."""
        return self._failed > 0

    def trust(self, found: Agreement) -> None:
        """Take `found` for rounding: it is of the policy that the first comparison has shown to be served."""
        if not math.isfinite(found.kl):
            return
        self._usual_kl = max(self._usual_kl, self._growth * max(found.kl, 1e-12))
        if found.tokens >= _TELLING_TOKENS:
            self._outliers = _OUTLIERS if found.kl > _EXACT else 0.0

    def judge(self, version: int, found: Agreement) -> str | None:
        """What is wrong, in one line, once `PATIENCE` comparisons in a row failed; `found` is of tokens of `version`.

        One of too few tokens, or that is not finite (the step is not either, and is counted there), is passed over.
        """
        if found.tokens < FEWEST_TOKENS or not math.isfinite(found.kl):
            return None
        max_kl = min(self._max_kl, self._usual_kl + self._outliers / found.tokens)
        self._failed = 0 if _agree(found, max_kl, self._min_mass) else self._failed + 1
        if self._failed < PATIENCE:
            return None
        return (
            f"step {version + 1}: the engine says that it serves version {version}, but its tokens are not that "
            f"policy's (KL {found.kl:.2g} a token, at most {max_kl:.2g}; mean ratio {found.mass:.3g}, at least "
            f"{self._min_mass:g}; twice in a row): it keeps older weights, or samples otherwise than before; "
            "restart it and resume the run, or raise rollout.behaviour.max_growth if it only rounds"
        )


def _agree(found: Agreement, max_kl: float, min_mass: float) -> bool:
    return found.kl <= max_kl and found.mass + 3 * found.mass_error >= min_mass


def behaviour_metrics(found: Agreement) -> dict[str, float]:
    """The figures of a comparison, and of how many tokens they are."""
    return {"behaviour/kl": found.kl, "behaviour/mass": found.mass, "behaviour/tokens": float(found.tokens)}


def compare_behaviour(engine_C: FloatArray, learner_C: FloatArray) -> BehaviourComparison:
    """Log-probabilities (C,) of the same tokens, sampled by the engine, from both sides; C >= 1. Tokens that the engine
    does not know are left out; where it knows none, or the learner is not finite, kl is infinite.
    """
    engine = known_logprobs(engine_C).astype(np.float64)
    engine, learner = engine[~np.isnan(engine)], learner_C[~np.isnan(engine)].astype(np.float64)
    if not len(engine):
        return _incomparable(len(engine_C), Suspect.ENGINE)
    if not np.isfinite(learner).all():
        return _incomparable(len(engine), Suspect.LEARNER)
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


def _incomparable(tokens: int, suspect: Suspect) -> BehaviourComparison:
    return BehaviourComparison(math.inf, math.inf, mass=0.0, mass_error=0.0, tokens=tokens, suspect=suspect)


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
