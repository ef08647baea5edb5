"""Intervals cover the truth as often as they claim, agree with their definitions, and stay sane at the edges."""

from math import comb

import numpy as np
import pytest
from scipy.stats import binomtest

from treeopo.evaluation.intervals import (
    bootstrap_interval,
    mcnemar_p_value,
    paired_difference_interval,
    wilson_interval,
)


def outcomes(*counts: tuple[float, float, int]) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (first, second) repeated so many times each."""
    pairs = np.array([(first, second) for first, second, times in counts for _ in range(times)], dtype=float)
    return pairs[:, 0], pairs[:, 1]


@pytest.mark.parametrize(("successes", "count"), [(0, 10), (3, 10), (10, 10), (150, 300), (299, 300), (0, 1)])
def test_wilson_agrees_with_scipy(successes: int, count: int) -> None:
    ours = wilson_interval(np.repeat([1.0, 0.0], [successes, count - successes]))
    theirs = binomtest(successes, count).proportion_ci(0.95, method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))
    assert ours.estimate == successes / count


@pytest.mark.parametrize("count", range(1, 40))
def test_an_interval_holds_its_estimate_even_at_the_edges(count: int) -> None:
    for outcome in (0.0, 1.0):
        interval = wilson_interval(np.full(count, outcome))
        assert 0 <= interval.low <= interval.estimate <= interval.high <= 1


def test_the_paired_interval_follows_newcombes_method_10() -> None:
    first, second = outcomes((1, 1, 20), (1, 0, 12), (0, 1, 2), (0, 0, 16))
    interval = paired_difference_interval(first, second)
    assert interval.estimate == pytest.approx(0.2)
    assert (interval.low, interval.high) == pytest.approx((0.0562, 0.3292), abs=1e-4)


def test_swapping_the_models_mirrors_the_paired_interval() -> None:
    first, second = outcomes((1, 1, 30), (1, 0, 9), (0, 1, 4), (0, 0, 7))
    one, other = paired_difference_interval(first, second), paired_difference_interval(second, first)
    assert (one.estimate, one.low, one.high) == pytest.approx((-other.estimate, -other.high, -other.low))


@pytest.mark.parametrize("pair", [(1, 1), (0, 0), (1, 0), (0, 1)])
def test_the_paired_interval_keeps_a_width_and_stays_in_range_where_all_pairs_are_alike(pair: tuple[int, int]) -> None:
    interval = paired_difference_interval(*outcomes((*pair, 40)))
    assert -1 <= interval.low <= interval.estimate <= interval.high <= 1
    assert interval.high - interval.low > 0.05


def test_agreeing_models_are_compared_more_sharply_than_independent_ones() -> None:
    agreeing = paired_difference_interval(*outcomes((1, 1, 50), (1, 0, 10), (0, 0, 40)))
    crossed = paired_difference_interval(*outcomes((1, 1, 20), (1, 0, 40), (0, 1, 30), (0, 0, 10)))
    assert agreeing.estimate == pytest.approx(crossed.estimate)
    assert agreeing.high - agreeing.low < 0.6 * (crossed.high - crossed.low)


@pytest.mark.parametrize("cells", [(0.5, 0.2, 0.1, 0.2), (0.2, 0.7, 0.02, 0.08), (0.9, 0.05, 0.03, 0.02)])
def test_the_paired_interval_covers_the_truth_about_95_times_in_100(cells: tuple[float, ...]) -> None:
    rng, truth, covered = np.random.default_rng(0), cells[1] - cells[2], 0
    for _ in range(1000):
        counts = rng.multinomial(100, cells)
        interval = paired_difference_interval(
            *outcomes((1, 1, counts[0]), (1, 0, counts[1]), (0, 1, counts[2]), (0, 0, counts[3]))
        )
        covered += interval.low <= truth <= interval.high
    assert 920 <= covered <= 995


def test_unpaired_outcomes_are_refused() -> None:
    with pytest.raises(ValueError, match="must match"):
        paired_difference_interval(np.ones(3), np.ones(4))


def test_the_bootstrap_resamples_problems() -> None:
    values = np.repeat([0.0, 1.0], 50)
    interval = bootstrap_interval(values)
    assert interval.estimate == 0.5
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * 0.05, rel=0.1)
    assert bootstrap_interval(values) == interval


def test_no_outcome_has_no_interval() -> None:
    for interval in (wilson_interval, bootstrap_interval):
        with pytest.raises(ValueError, match="at least one"):
            interval(np.array([]))


def test_mcnemar_s_p_value_is_the_chance_of_a_split_at_least_as_uneven_among_the_disagreements() -> None:
    first, second = outcomes((1, 1, 30), (1, 0, 9), (0, 1, 2), (0, 0, 7))
    tail = sum(comb(11, wins) for wins in (0, 1, 2)) / 2**11
    assert mcnemar_p_value(first, second) == pytest.approx(2 * tail)
    assert mcnemar_p_value(second, first) == pytest.approx(2 * tail)
    assert mcnemar_p_value(first, first) == 1.0
