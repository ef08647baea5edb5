"""Whole-tree statistics agree with counting by hand, whatever the tree."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.profiles import examples
from tests.property.advantage_oracles import in_subtree, trees
from treeopo.records import Outcomes
from treeopo.tree import check_parents, estimated_success, subtree_statistics


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


def depths(parent):
    found: list[int] = []
    for p in parent:
        found.append(0 if p < 0 else found[p] + 1)
    return np.array(found, np.int32)


def by_the_formula(parent, depth, total, success, k):
    """The estimate as its docstring defines it, in log-odds, one node after another."""
    logit = lambda share: np.log(share / (1 - share))  # noqa: E731
    mean = [(success[depth == d].sum() + k / 2) / (total[depth == d].sum() + k) for d in range(int(depth.max()) + 1)]
    found: list[float] = []
    for p, above in enumerate(parent):
        prior = logit(mean[depth[p]])
        if above >= 0:
            prior += logit(found[above]) - logit(mean[depth[p] - 1])
        found.append((success[p] + k / (1 + np.exp(-np.clip(prior, -13.8155, 13.8155)))) / (total[p] + k))
    return found


@examples(5)
@given(counted_trees(), st.sampled_from([0.5, 2.0, 10.0]))
def test_the_estimated_success_is_that_of_its_formula(case, k):
    parent, total, success = case
    outcomes = Outcomes(np.array(total, float), np.array(success, float))
    found = estimated_success(parent, depths(parent), outcomes, k)
    assert np.allclose(found, by_the_formula(parent, depths(parent), outcomes.total, outcomes.success, k), rtol=1e-4)
    assert ((found > 0) & (found < 1)).all()


@examples(3)
@given(counted_trees())
def test_with_much_evidence_the_estimate_is_the_nodes_own_share_and_with_none_a_half(case):
    parent, total, success = case
    total, success = np.array(total, float), np.array(success, float)
    much = estimated_success(parent, depths(parent), Outcomes(total * 1e7, success * 1e7), 2.0)
    seen = total > 0
    assert np.allclose(much[seen], (success / np.maximum(total, 1))[seen], atol=1e-4)
    nothing = Outcomes(np.zeros(len(parent)), np.zeros(len(parent)))
    assert np.allclose(estimated_success(parent, depths(parent), nothing, 2.0), 0.5)


def test_an_unseen_prefix_takes_its_depths_mean_shifted_as_its_parent_is():
    """Two problems, a root and a child each; the second's child is unseen, and its root does better."""
    outcomes = Outcomes(np.array([100.0, 100, 100, 0]), np.array([10.0, 50, 90, 0]))
    estimate = estimated_success([-1, 0, -1, 2], np.array([0, 1, 0, 1], np.int32), outcomes, 1e-9)
    assert estimate[:3] == pytest.approx([0.1, 0.5, 0.9])
    assert estimate[3] == pytest.approx(0.9)  # the depth's mean is 1/2, the roots' too, and its root stands at 0.9
