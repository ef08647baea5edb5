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
    # At shares of 0 and 1 an end is the share itself, but for a rounding error that would put it on the wrong side.
    return Interval(share, min(share, max(0.0, float(centre - half))), max(share, min(1.0, float(centre + half))))


def is_binary(outcomes: Floats) -> bool:
    """Whether every outcome is 0 or 1."""
    return bool(np.isin(outcomes, (0.0, 1.0)).all())


def mean_interval(rewards_M: Floats) -> Interval:
    """The mean of M rewards, one a problem: Wilson's interval where all are 0 or 1, else the bootstrap's.

    Raises:
        ValueError: there is no reward.
    """
    return wilson_interval(rewards_M) if is_binary(rewards_M) else bootstrap_interval(rewards_M)


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


def paired_difference_interval(first_M: Floats, second_M: Floats, confidence: float = 0.95) -> Interval:
    """Newcombe's interval for the share of ones in first_M minus that in second_M, 0/1 outcomes on the same M problems.

    Method 10 of Newcombe (1998, Statistics in Medicine 17:2635-2650): Wilson's intervals of the two shares, joined with
    the correlation of the pairs. Unlike a bootstrap it keeps a width where the two models never disagree.

    Raises:
        ValueError: there is no outcome, or not as many of one as of the other.
    """
    if first_M.shape != second_M.shape:
        raise ValueError(f"paired outcomes must match: {first_M.shape} and {second_M.shape}")
    first, second = wilson_interval(first_M, confidence), wilson_interval(second_M, confidence)
    share = first.estimate - second.estimate
    phi = _paired_correlation(first_M, second_M)

    def distance(a: float, b: float) -> float:
        return float(np.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b)))

    low = share - distance(first.estimate - first.low, second.high - second.estimate)
    high = share + distance(first.high - first.estimate, second.estimate - second.low)
    return Interval(share, low, high)


def _paired_correlation(first_M: Floats, second_M: Floats) -> float:
    """phi of the 2 x 2 table of pairs, shrunk by Newcombe's continuity correction where positive."""
    count = len(first_M)
    both, first, second = float(first_M @ second_M), float(first_M.sum()), float(second_M.sum())
    product = first * (count - first) * second * (count - second)
    if product == 0:
        return 0.0
    covariance = both * (count - first - second + both) - (first - both) * (second - both)
    if covariance > 0:
        covariance = max(0.0, covariance - count / 2)
    return covariance / float(np.sqrt(product))


def mcnemar_p_value(first_M: Floats, second_M: Floats) -> float:
    """Exact two-sided McNemar test (1947) that two models solve as many of the same M problems; 0/1 outcomes."""
    from scipy.stats import binomtest

    only_first = int(np.count_nonzero(first_M > second_M))
    only_second = int(np.count_nonzero(first_M < second_M))
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)
