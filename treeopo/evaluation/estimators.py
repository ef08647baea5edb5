"""What many samples a problem say: pass@k and maj@k, by problem."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def pass_at_k(correct_M: npt.NDArray[np.int64], samples: int, k: int) -> Floats:
    """Unbiased estimate (M,) of the chance that one of k samples is right, from `samples` of which correct_M were.

    1 - C(samples - correct, k) / C(samples, k), as a product (Chen et al. 2021, arXiv:2107.03374, eq. 1).

    Raises:
        ValueError: k is not in 1..samples.
    """
    _check(k, samples)
    drawn = np.arange(samples - k + 1, samples + 1)
    return np.asarray(1.0 - np.clip(1.0 - correct_M[:, None] / drawn, 0.0, 1.0).prod(axis=1))


def majority_at_k(answers_MS: Sequence[Sequence[str]], right_MS: Floats, k: int) -> Floats:
    """Unbiased estimate (M,) of the chance that the commonest answer of k samples is right (maj@k, Wang et al. 2023,
    arXiv:2203.11171): the mean over the S // k disjoint runs of k samples.

    Answers are compared as they are; an empty one (no answer, or cut off) never votes, and without a vote the problem
    is wrong. A tie counts as the share of its answers that are right.

    Raises:
        ValueError: k is not in 1..S.
    """
    _check(k, right_MS.shape[1])
    starts = range(0, right_MS.shape[1] - k + 1, k)
    return np.array(
        [
            np.mean([_vote(answers[start : start + k], right[start : start + k]) for start in starts])
            for answers, right in zip(answers_MS, right_MS, strict=True)
        ]
    )


def _vote(answers: Sequence[str], right: Floats) -> float:
    votes = Counter(answer for answer in answers if answer)
    most = max(votes.values(), default=0)
    leaders = [answer for answer, count in votes.items() if count == most]
    return float(np.mean([right[answers.index(answer)] for answer in leaders])) if leaders else 0.0


def _check(k: int, samples: int) -> None:
    if not 1 <= k <= samples:
        raise ValueError(f"k is {k}, of {samples} samples; it must be between 1 and the number of samples")
