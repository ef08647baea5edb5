"""Whole-tree statistics agree with counting by hand, whatever the tree."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.profiles import examples
from tests.property.advantage_oracles import in_subtree, trees
from treeopo.tree import check_parents, subtree_statistics


@st.composite
def counted_trees(draw):
    parent = draw(trees(max_nodes=20))
    total = draw(st.lists(st.integers(0, 3), min_size=len(parent), max_size=len(parent)))
    success = [draw(st.integers(0, n)) for n in total]
    return parent, total, success


@examples(5)
@given(counted_trees())
def test_subtree_statistics_equal_counting_every_subtree(case):
    parent, total, success = case
    found = subtree_statistics(parent, np.array(total), np.array(success))
    for root in range(len(parent)):
        below = [p for p in range(len(parent)) if in_subtree(parent, root, p)]
        n, s = sum(total[p] for p in below), sum(success[p] for p in below)
        assert (found.total[root], found.success[root]) == (n, s)
        assert found.exists[root] == any(success[p] for p in below)
        assert found.every[root] == all(success[p] == total[p] for p in below)


@examples(5)
@given(trees(), trees())
def test_a_forest_is_its_trees_side_by_side(left, right):
    joined = left + [p if p < 0 else p + len(left) for p in right]
    ones = np.ones(len(joined), dtype=np.int64)
    whole = subtree_statistics(check_parents(joined), ones, ones).total
    apart = [subtree_statistics(tree, ones[: len(tree)], ones[: len(tree)]).total for tree in (left, right)]
    assert np.array_equal(whole, np.concatenate(apart))
