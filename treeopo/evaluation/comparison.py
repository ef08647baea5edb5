"""Scores with their uncertainty, and two models compared on the same problems."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from treeopo.evaluation.accuracy import Scores
from treeopo.evaluation.estimators import best_at_k, majority_at_k, pass_at_k
from treeopo.evaluation.intervals import (
    Floats,
    Interval,
    bootstrap_interval,
    mcnemar_p_value,
    paired_difference_interval,
    wilson_interval,
)


@dataclass(frozen=True, slots=True)
class ModelScore:
    """One model on one problem set. `greedy` is pass@1 at temperature 0, or the mean reward where rewards are
    fractional. Over the temperature-1 samples, by k: pass_at (pass_at[1] is sampled pass@1; with fractional rewards the
    highest reward of k samples) and majority_at; both are empty where none was drawn. Answers whose grading timed out
    are wrong and counted in `grader_timeouts`, those at which the grader failed in `grader_errors`; `grader_restarts`
    counts the grading processes replaced. `grader_unreadable_golds` golds are such that every answer is wrong.
    """

    label: str
    greedy: Interval
    pass_at: dict[int, Interval]
    majority_at: dict[int, Interval]
    truncated: int
    grader_timeouts: int = 0
    grader_restarts: int = 0
    grader_errors: int = 0
    grader_unreadable_golds: int = 0

    @property
    def sampled(self) -> Interval | None:
        return self.pass_at.get(1)


@dataclass(frozen=True, slots=True)
class Difference:
    """First minus second model on the same problems; `p_value` is McNemar's exact test of the greedy answers, None
    where rewards are fractional.
    """

    greedy: Interval
    p_value: float | None
    sampled: Interval | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One or two models on the `count` problems of a set. is_binary: every reward is 0 or 1."""

    problems: str
    count: int
    scores: tuple[ModelScore, ...]
    difference: Difference | None
    is_binary: bool = True


def compare_models(problems: str, labels: Sequence[str], scores: Sequence[Scores]) -> Evaluation:
    """Wilson's intervals for greedy accuracy, Newcombe's for their difference; the rest: bootstrap by problem, and all
    of it where some reward is neither 0 nor 1.
    """
    binary = all(score.is_binary for score in scores)
    rows = tuple(_score(label, score, binary) for label, score in zip(labels, scores, strict=True))
    difference = _difference(scores[0], scores[1], binary) if len(scores) == 2 else None
    return Evaluation(problems, len(scores[0].greedy), rows, difference, binary)


def _score(label: str, scores: Scores, binary: bool) -> ModelScore:
    budgets = _budgets(scores.sampled.shape[1])
    return ModelScore(
        label,
        wilson_interval(scores.greedy) if binary else bootstrap_interval(scores.greedy),
        {k: bootstrap_interval(_best(scores.sampled, k, binary)) for k in budgets},
        {k: bootstrap_interval(majority_at_k(scores.answers, scores.sampled, k)) for k in budgets if k > 2},
        scores.truncated,
        grader_timeouts=int(scores.grader.get("grader/timeouts", 0)),
        grader_restarts=int(scores.grader.get("grader/restarts", 0)),
        grader_errors=int(scores.grader.get("grader/errors", 0)),
        grader_unreadable_golds=int(scores.grader.get("grader/unreadable_golds", 0)),
    )


def _best(sampled_MS: Floats, k: int, binary: bool) -> Floats:
    if not binary:
        return best_at_k(sampled_MS, k)
    return pass_at_k(sampled_MS.sum(axis=1).astype(np.int64), sampled_MS.shape[1], k)


def _budgets(samples: int) -> list[int]:
    """The k of pass@k and maj@k: powers of two up to the number of samples, and that number itself."""
    powers = [2**power for power in range(samples.bit_length()) if 2**power <= samples]
    return sorted({*powers, samples} - {0})


def _difference(first: Scores, second: Scores, binary: bool) -> Difference:
    sampled = None
    if first.sampled.size:
        sampled = bootstrap_interval(first.sampled.mean(axis=1) - second.sampled.mean(axis=1))
    if not binary:
        return Difference(bootstrap_interval(first.greedy - second.greedy), None, sampled)
    greedy = paired_difference_interval(first.greedy, second.greedy)
    return Difference(greedy, mcnemar_p_value(first.greedy, second.greedy), sampled)
