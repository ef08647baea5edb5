"""Order constraints by hand (docs/advantages.md, Order constraints)."""

from typing import Any

import numpy as np

from treeopo.advantage import staged_advantages

#             root
#      1       2       3
#    4   5     6
PARENT = [-1, 0, 0, 0, 1, 1, 2]


def order(node, reward):
    result = staged_advantages(PARENT, node, reward, "flat")
    return sorted(map(tuple, result.order.tolist())), result.dropped


def test_a_failure_ranks_below_a_success_deeper_down_its_branch():
    assert order([1, 4], [0, 1]) == ([(0, 1)], 0)
    assert order([0, 4], [0, 1]) == ([(0, 1)], 0)


def test_no_pair_without_a_failure_above_a_success():
    for reward in ([1, 0], [0, 0], [1, 1]):
        assert order([1, 4], reward) == ([], 0)
    assert order([1, 6], [0, 1]) == ([], 0)  # another branch
    assert order([1, 1], [0, 1]) == ([], 0)  # the same node is no proper prefix of itself


def test_a_failing_sibling_with_a_proven_branch_ranks_below_one_without():
    # 1 failed but 4 below it succeeded; 2 and 3 failed and nothing below them succeeded.
    assert order([1, 2, 3, 4], [0, 0, 0, 1]) == ([(0, 1), (0, 2), (0, 3)], 0)


def test_siblings_that_both_have_a_successful_descendant_are_dropped_and_counted():
    pairs, dropped = order([1, 2, 4, 6], [0, 0, 1, 1])
    assert pairs == [(0, 2), (1, 3)]
    assert dropped == 1


def test_a_sibling_that_succeeded_itself_takes_no_part_in_triplets():
    assert order([1, 1, 2, 4], [0, 1, 0, 1])[0] == [(0, 3)]
    assert order([1, 2, 2, 4], [0, 0, 1, 1])[0] == [(0, 3)]


def test_every_sample_of_a_node_is_constrained():
    assert order([1, 1, 2, 4], [0, 0, 0, 1])[0] == [(0, 2), (0, 3), (1, 2), (1, 3)]


def test_satisfaction_is_strict_without_a_margin_and_tolerant_with_one():
    kwargs: dict[str, Any] = {"order": [[0, 1]]}
    group = ([-1], [0, 0])
    assert staged_advantages(*group, [1.0, 1.0], "flat", **kwargs).satisfaction == 0.0
    assert staged_advantages(*group, [1.0, 1.0 + 1e-12], "flat", **kwargs).satisfaction == 1.0
    assert staged_advantages(*group, [1.0, 1.5 - 1e-10], "flat", margin_pair=0.5, **kwargs).satisfaction == 1.0
    assert staged_advantages(*group, [1.0, 1.5 - 1e-8], "flat", margin_pair=0.5, **kwargs).satisfaction == 0.0


def test_groups_without_constraints_have_no_satisfaction():
    assert np.isnan(staged_advantages(PARENT, [0, 0], [0, 1], "flat").satisfaction)
