"""UCT (Kocsis and Szepesvári 2006): which child of a fully tried node the next trace goes through."""

from collections.abc import Sequence
from math import log, sqrt


def uct_score(value_sum: float, visits: int, parent_visits: int, exploration: float) -> float:
    """Mean return plus c·sqrt(ln(visits of the parent) / visits of the child); both visited at least once."""
    return value_sum / visits + exploration * sqrt(log(parent_visits) / visits)


def select_child(value_sums: Sequence[float], visits: Sequence[int], parent_visits: int, exploration: float) -> int:
    """Index of the child with the highest score, the earliest of equals; c = 0 is greedy, c → ∞ least visited."""
    scores = [
        uct_score(value, count, parent_visits, exploration) for value, count in zip(value_sums, visits, strict=True)
    ]
    return scores.index(max(scores))
