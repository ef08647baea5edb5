"""Scores with their uncertainty, and two models compared on the same problems."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from treeopo.evaluation.accuracy import Scores
from treeopo.evaluation.estimators import majority_at_k, pass_at_k
from treeopo.evaluation.intervals import (
    Interval,
    bootstrap_interval,
    mcnemar_p_value,
    paired_difference_interval,
    wilson_interval,
)


@dataclass(frozen=True, slots=True)
class ModelScore:
    """One model on one problem set. `greedy` is pass@1 at temperature 0. Over the temperature-1 samples, by k: pass_at
    (pass_at[1] is sampled pass@1) and majority_at; both are empty where none was drawn. Answers whose grading timed out
    are wrong and counted in `grader_timeouts`; `grader_restarts` counts the grading processes replaced.
    """

    label: str
    greedy: Interval
    pass_at: dict[int, Interval]
    majority_at: dict[int, Interval]
    truncated: int
    grader_timeouts: int = 0
    grader_restarts: int = 0

    @property
    def sampled(self) -> Interval | None:
        return self.pass_at.get(1)


@dataclass(frozen=True, slots=True)
class Difference:
    """First minus second model on the same problems; `p_value` is McNemar's exact test of the greedy answers."""

    greedy: Interval
    p_value: float
    sampled: Interval | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One or two models on the `count` problems of a set."""

    problems: str
    count: int
    scores: tuple[ModelScore, ...]
    difference: Difference | None


def compare(problems: str, labels: Sequence[str], scores: Sequence[Scores]) -> Evaluation:
    """Wilson's intervals for greedy accuracy, Newcombe's for their difference; the rest: bootstrap by problem."""
    rows = tuple(_score(label, score) for label, score in zip(labels, scores, strict=True))
    difference = _difference(*scores) if len(scores) == 2 else None
    return Evaluation(problems, len(scores[0].greedy), rows, difference)


def _score(label: str, scores: Scores) -> ModelScore:
    samples = scores.sampled.shape[1]
    budgets = _budgets(samples)
    correct_M = scores.sampled.sum(axis=1).astype(np.int64)
    return ModelScore(
        label,
        wilson_interval(scores.greedy),
        {k: bootstrap_interval(pass_at_k(correct_M, samples, k)) for k in budgets},
        {k: bootstrap_interval(majority_at_k(scores.answers, scores.sampled, k)) for k in budgets if k > 2},
        scores.truncated,
        grader_timeouts=int(scores.grader.get("grader_timeouts", 0)),
        grader_restarts=int(scores.grader.get("grader_restarts", 0)),
    )


def _budgets(samples: int) -> list[int]:
    """The k of pass@k and maj@k: powers of two up to the number of samples, and that number itself."""
    powers = [2**power for power in range(samples.bit_length()) if 2**power <= samples]
    return sorted({*powers, samples} - {0})


def _difference(first: Scores, second: Scores) -> Difference:
    sampled = None
    if first.sampled.size:
        sampled = bootstrap_interval(first.sampled.mean(axis=1) - second.sampled.mean(axis=1))
    return Difference(
        paired_difference_interval(first.greedy, second.greedy), mcnemar_p_value(first.greedy, second.greedy), sampled
    )
