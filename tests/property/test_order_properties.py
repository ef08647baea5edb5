"""The order of a group equals SPEC §4 read aloud, is acyclic and has height one."""

import numpy as np
from advantage_oracles import groups, tree_order
from hypothesis import given, settings

from treeopo.advantage import staged_advantages
from treeopo.advantage.checks import find_cycle


@settings(max_examples=1000, deadline=None)
@given(groups(max_samples=14))
def test_order_equals_its_definition(group):
    result = staged_advantages(*group, "flat")
    pairs, triplets, dropped = tree_order(*group)
    found = list(map(tuple, result.order.tolist()))
    assert len(found) == len(set(found))
    assert set(found) == pairs | triplets
    assert result.dropped == dropped


@settings(max_examples=500, deadline=None)
@given(groups(max_samples=14))
def test_no_sample_is_below_one_constraint_and_above_another(group):
    order = staged_advantages(*group, "flat").order
    assert not set(order[:, 0].tolist()) & set(order[:, 1].tolist())
    assert find_cycle(order, len(group[1])) is None


@settings(max_examples=500, deadline=None)
@given(groups(max_samples=14))
def test_satisfaction_is_the_share_of_constraints_that_hold(group):
    for method in ("expectation", "optimistic", "loo"):
        result = staged_advantages(*group, method)
        held = [result.advantage[i] < result.advantage[j] for i, j in result.order]
        assert np.isnan(result.satisfaction) if not held else result.satisfaction == np.mean(held)
