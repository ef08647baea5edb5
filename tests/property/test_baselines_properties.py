"""Every baseline agrees with its definition on random trees and groups."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.profiles import examples
from tests.property.advantage_oracles import (
    Group,
    expectation,
    groups,
    leave_one_out,
    optimistic,
    pessimistic,
    posterior,
)
from treeopo.advantage import Outcomes, staged_advantages


@examples(5)
@given(groups())
def test_heuristic_values_equal_their_definitions(group: Group):
    oracles = {
        "expectation": expectation,
        "optimistic": optimistic,
        "pessimistic": pessimistic,
        "loo": leave_one_out,
    }
    for method, oracle in oracles.items():
        result = staged_advantages(*group, method, alpha=0.3)
        assert result.value.tolist() == [float(v) for v in oracle(*group)]
        assert np.array_equal(result.raw, np.array(group[2]) - 0.3 * result.value)
        np.testing.assert_allclose(result.advantage, result.raw - result.raw.mean(), rtol=0, atol=1e-15)


@examples(5)
@given(groups(), st.floats(0.05, 0.95), st.floats(0.1, 10), st.integers(0, 2**32))
def test_the_posterior_equals_shrinking_down_the_path(group: Group, prior_mean, prior_strength, seed):
    prior = {"prior_mean": prior_mean, "prior_strength": prior_strength}
    found = staged_advantages(*group, "posterior", **prior).value
    np.testing.assert_allclose(found, posterior(*group, prior_mean, prior_strength), rtol=1e-12)
    rng, P = np.random.default_rng(seed), len(group[0])
    total = rng.integers(0, 4, P) * rng.choice([0.25, 1.0], P)
    success = total * rng.random(P)
    found = staged_advantages(*group, "posterior", scope="history", history=Outcomes(total, success), **prior).value
    expected = posterior(*group, prior_mean, prior_strength, total, success)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@examples(5)
@given(groups(), st.integers(0, 9))
def test_leave_one_out_and_posterior_never_see_the_samples_own_reward(group: Group, k):
    parent, node, reward = group
    k %= len(node)
    flipped = [1 - r if n == k else r for n, r in enumerate(reward)]
    for method in ("loo", "posterior"):
        before = staged_advantages(parent, node, reward, method).value[k]
        assert staged_advantages(parent, node, flipped, method).value[k] == before
