"""pass@k and maj@k are what a reader of the papers expects, to the last fraction."""

from itertools import combinations, product
from math import comb

import numpy as np
import pytest

from treeopo.evaluation.estimators import majority_at_k, pass_at_k


def test_pass_at_k_is_the_share_of_subsets_that_hold_a_right_sample() -> None:
    for samples in range(1, 7):
        for k in range(1, samples + 1):
            estimates = pass_at_k(np.arange(samples + 1), samples, k)
            for correct in range(samples + 1):
                hits = sum(min(subset) < correct for subset in combinations(range(samples), k))
                assert estimates[correct] == pytest.approx(hits / comb(samples, k))


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_k_needs_k_samples(k: int) -> None:
    with pytest.raises(ValueError, match="between 1 and the number of samples"):
        pass_at_k(np.array([1]), 4, k)


def majority(answers: list[str], right: list[float], k: int) -> float:
    return float(majority_at_k([answers], np.array([right], float), k)[0])


def test_the_commonest_answer_decides() -> None:
    assert majority(["4", "4", "7"], [1, 1, 0], 3) == 1
    assert majority(["4", "7", "7"], [1, 0, 0], 3) == 0


def test_what_gives_no_answer_does_not_vote() -> None:
    assert majority(["", "", "", "4"], [0, 0, 0, 1], 4) == 1
    assert majority(["", ""], [0, 0], 2) == 0


def test_a_tie_counts_by_the_share_of_its_answers_that_are_right() -> None:
    assert majority(["4", "7"], [1, 0], 2) == 0.5
    assert majority(["4", "7", "9"], [0, 1, 0], 3) == pytest.approx(1 / 3)


def test_majority_of_one_is_plain_accuracy() -> None:
    assert majority(["4", "", "7", "4"], [1, 0, 0, 1], 1) == 0.5


def test_majority_at_k_is_unbiased() -> None:
    """Over every sequence of four samples from a known answer distribution the estimate of maj@2 averages to the
    chance that two samples vote right.
    """
    chance, right = {"4": 0.5, "7": 0.3, "": 0.2}, {"4": 1.0, "7": 0.0, "": 0.0}

    def expected(samples: int) -> float:
        return sum(
            float(np.prod([chance[answer] for answer in drawn]))
            * majority(list(drawn), [right[answer] for answer in drawn], 2)
            for drawn in product(chance, repeat=samples)
        )

    assert expected(4) == pytest.approx(expected(2))


def test_more_samples_than_there_are_cannot_vote() -> None:
    with pytest.raises(ValueError, match="between 1 and the number of samples"):
        majority(["4"], [1], 2)
