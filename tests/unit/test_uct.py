"""UCT's selection rule on its own."""

from math import log, sqrt

from hypothesis import given
from hypothesis import strategies as st

from treeopo.search.uct import select_child, uct_score

children = st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1)), min_size=1, max_size=5)


def test_score_is_the_mean_plus_the_exploration_bonus() -> None:
    assert uct_score(3.0, 4, 10, 2.0) == 0.75 + 2.0 * sqrt(log(10) / 4)


@given(children)
def test_without_exploration_the_child_with_the_best_mean_is_chosen(stats: list[tuple[int, float]]) -> None:
    visits = [count for count, _ in stats]
    values = [count * mean for count, mean in stats]
    chosen = select_child(values, visits, sum(visits), exploration=0.0)
    assert values[chosen] / visits[chosen] == max(value / count for value, count in zip(values, visits, strict=True))


@given(children)
def test_with_unbounded_exploration_the_least_visited_child_is_chosen(stats: list[tuple[int, float]]) -> None:
    visits = [count for count, _ in stats]
    values = [count * mean for count, mean in stats]
    assert visits[select_child(values, visits, sum(visits) + 2, exploration=1e9)] == min(visits)


def test_unbounded_exploration_visits_all_children_equally_often() -> None:
    visits = [1, 1, 1, 1]
    for _ in range(96):
        visits[select_child([0.9 * visits[0], 0, 0, 0], visits, sum(visits), exploration=1e9)] += 1
    assert visits == [25, 25, 25, 25]


def test_the_earliest_of_equal_children_is_chosen() -> None:
    assert select_child([0.0, 1.0, 1.0], [1, 1, 1], 3, exploration=1.0) == 1
