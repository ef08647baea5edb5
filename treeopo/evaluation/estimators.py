"""What many samples a problem say: pass@k (best@k where rewards are fractional) and maj@k, by problem."""

from collections import Counter
from collections.abc import Sequence
from math import comb

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


def best_at_k(reward_MS: Floats, k: int) -> Floats:
    """Unbiased estimate (M,) of the highest reward among k samples, from S of them with rewards in [0, 1].

    The mean over all choices of k: the i-th lowest reward is the highest of C(i - 1, k - 1) of the C(S, k) choices.
    Where rewards are 0 or 1 this is `pass_at_k`.

    Raises:
        ValueError: k is not in 1..S.
    """
    samples = reward_MS.shape[1]
    _check(k, samples)
    chance_S = np.array([comb(i - 1, k - 1) / comb(samples, k) for i in range(1, samples + 1)])
    return np.asarray(np.sort(reward_MS, axis=1) @ chance_S)


def majority_at_k(answers_MS: Sequence[Sequence[str]], reward_MS: Floats, k: int) -> Floats:
    """Unbiased estimate (M,) of the reward of the commonest answer of k samples (maj@k, Wang et al. 2023,
    arXiv:2203.11171), the chance that it is right where rewards are 0 or 1: the mean over the S // k disjoint runs of k
    samples.

    Answers are compared as they are; an empty one (no answer, or cut off) never votes, and without a vote the reward is
    0. An answer's reward is the mean over the samples that give it, and that of a tie the mean over its answers.

    Raises:
        ValueError: k is not in 1..S.
    """
    _check(k, reward_MS.shape[1])
    starts = range(0, reward_MS.shape[1] - k + 1, k)
    return np.array(
        [
            np.mean([_vote(answers[start : start + k], rewards[start : start + k]) for start in starts])
            for answers, rewards in zip(answers_MS, reward_MS, strict=True)
        ]
    )


def _vote(answers: Sequence[str], rewards: Floats) -> float:
    votes = Counter(answer for answer in answers if answer)
    most = max(votes.values(), default=0)
    leaders = [answer for answer, count in votes.items() if count == most]
    given = np.array(answers)
    return float(np.mean([rewards[given == answer].mean() for answer in leaders])) if leaders else 0.0


def _check(k: int, samples: int) -> None:
    if not 1 <= k <= samples:
        raise ValueError(f"k is {k}, of {samples} samples; it must be between 1 and the number of samples")
