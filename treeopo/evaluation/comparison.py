"""Scores with their uncertainty, and two models compared on the same problems."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from treeopo.evaluation.accuracy import Scores
from treeopo.evaluation.intervals import Interval, bootstrap_interval, paired_difference_interval, wilson_interval


@dataclass(frozen=True, slots=True)
class ModelScore:
    """pass@1 of one model; `sampled` is its mean over the temperature-1 samples, None where none was drawn."""

    label: str
    greedy: Interval
    sampled: Interval | None
    truncated: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One or two models on `count` problems of a set; `difference` is first minus second, greedy, paired by problem."""

    problems: str
    count: int
    scores: tuple[ModelScore, ...]
    difference: Interval | None


def compare(problems: str, labels: Sequence[str], scores: Sequence[Scores]) -> Evaluation:
    """Wilson's intervals for greedy accuracy, Newcombe's for their paired difference; sampled: bootstrap by problem."""
    rows = tuple(
        ModelScore(
            label,
            wilson_interval(score.greedy),
            bootstrap_interval(score.sampled.mean(axis=1)) if score.sampled.size else None,
            score.truncated,
        )
        for label, score in zip(labels, scores, strict=True)
    )
    difference = paired_difference_interval(scores[0].greedy, scores[1].greedy) if len(scores) == 2 else None
    return Evaluation(problems, len(scores[0].greedy), rows, difference)


def read_evaluation(path: Path) -> Evaluation | None:
    """What `asdict` of an `Evaluation` wrote as JSON to `path`; None if there is no such file."""
    if not path.exists():
        return None
    return TypeAdapter(Evaluation).validate_json(path.read_text(encoding="utf-8"))
