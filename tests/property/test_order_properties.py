"""The order of a group equals its definition (docs/advantages.md), is acyclic and has height one."""

import numpy as np
from hypothesis import given

from tests.profiles import examples
from tests.property.advantage_oracles import Group, groups, tree_order
from treeopo.advantage import staged_advantages
from treeopo.advantage.checks import find_cycle


@examples(10)
@given(groups(max_samples=14))
def test_order_equals_its_definition(group: Group):
    result = staged_advantages(*group, "flat")
    pairs, triplets, dropped = tree_order(*group)
    found = list(map(tuple, result.order.tolist()))
    assert len(found) == len(set(found))
    assert set(found) == pairs | triplets
    assert result.dropped == dropped


@examples(5)
@given(groups(max_samples=14))
def test_no_sample_is_below_one_constraint_and_above_another(group: Group):
    order = staged_advantages(*group, "flat").order
    assert not set(order[:, 0].tolist()) & set(order[:, 1].tolist())
    assert find_cycle(order, len(group[1])) is None


@examples(5)
@given(groups(max_samples=14))
def test_satisfaction_is_the_share_of_constraints_that_hold(group: Group):
    for method in ("expectation", "optimistic", "loo"):
        result = staged_advantages(*group, method)
        held = [result.advantage[i] < result.advantage[j] for i, j in result.order]
        assert np.isnan(result.satisfaction) if not held else result.satisfaction == np.mean(held)
