"""Interval estimates for accuracies, by problem; 95% unless asked otherwise. Pure numpy and scipy."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 10_000

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with the ends of its confidence interval."""

    estimate: float
    low: float
    high: float


def wilson_interval(outcomes_M: Floats, confidence: float = 0.95) -> Interval:
    """Wilson's score interval for the share of ones in M independent 0/1 outcomes (Wilson 1927).

    Raises:
        ValueError: there is no outcome.
    """
    from scipy.special import ndtri

    count = len(outcomes_M)
    if count == 0:
        raise ValueError("an interval needs at least one outcome")
    share = float(np.mean(outcomes_M))
    z = float(ndtri(0.5 + confidence / 2))
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return Interval(share, max(0.0, float(centre - half)), min(1.0, float(centre + half)))


def bootstrap_interval(values_M: Floats, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Percentile bootstrap for the mean of M values, one a problem: problems are resampled, not their samples.

    For a paired comparison of two models pass the differences on the same problems (Efron & Tibshirani 1993, ch. 13).

    Raises:
        ValueError: there is no value.
    """
    count = len(values_M)
    if count == 0:
        raise ValueError("an interval needs at least one value")
    random = np.random.default_rng(seed)
    means = np.array([values_M[random.integers(count, size=count)].mean() for _ in range(RESAMPLES)])
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(np.mean(values_M)), float(low), float(high))
