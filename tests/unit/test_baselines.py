"""Baselines by hand: the worked example of Appendix C, and the cases the formulas leave open."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from treeopo.advantage import (
    AdvantageMethod,
    AdvantageSettings,
    Outcomes,
    Solver,
    staged_advantages,
    staged_advantages_batch,
)
from treeopo.errors import GroupError

#          Q   A  B  C  J  E  F  H
PARENT = [-1, 0, 1, 2, 1, 0, 5, 0]
NODE = [1, 2, 3, 3, 4, 5, 6, 7]
REWARD = [1, 0, 1, 0, 1, 1, 0, 1]

APPENDIX_C = {
    "expectation": ("3/5 1/3 1/2 1/2 1 1/2 0 1", "7/10 -1/6 3/4 -1/4 1/2 3/4 0 1/2"),
    "optimistic": ("1 1 1 1 1 1 0 1", "1/2 -1/2 1/2 -1/2 1/2 1/2 0 1/2"),
    "pessimistic": ("0 0 0 0 1 0 0 1", "1 0 1 0 1/2 1 0 1/2"),
}


@pytest.mark.parametrize("method", APPENDIX_C)
def test_appendix_c_to_the_last_digit(method):
    result = staged_advantages(PARENT, NODE, REWARD, method)
    value, raw = ([Fraction(x) for x in column.split()] for column in APPENDIX_C[method])
    assert result.value.tolist() == [float(x) for x in value]
    assert result.raw.tolist() == [float(r - v / 2) for r, v in zip(map(Fraction, REWARD), value, strict=True)]
    assert result.raw.tolist() == pytest.approx([float(x) for x in raw], abs=1e-16)
    centred = [float(x - sum(raw) / 8) for x in raw]
    np.testing.assert_allclose(result.advantage, centred, rtol=0, atol=2e-16)


def test_appendix_c_has_one_constraint_and_expectation_satisfies_it():
    result = staged_advantages(PARENT, NODE, REWARD)
    assert result.order.tolist() == [[1, 2]]
    assert result.satisfaction == 1.0
    assert result.dropped == 0


def test_grpo_is_the_z_score_over_the_population():
    advantage = staged_advantages([-1], [0] * 4, [1, 0, 0, 0], "grpo").advantage
    np.testing.assert_allclose(advantage, np.array([3, -1, -1, -1]) / np.sqrt(3), rtol=1e-15)


def test_grpo_without_standardization_and_flat_centre_the_rewards():
    for result in (
        staged_advantages(PARENT, NODE, REWARD, "grpo", standardize=False),
        staged_advantages(PARENT, NODE, REWARD, "flat"),
    ):
        assert result.advantage.tolist() == [3 / 8, -5 / 8, 3 / 8, -5 / 8, 3 / 8, 3 / 8, -5 / 8, 3 / 8]


@pytest.mark.parametrize("method", ["grpo", "flat", "expectation", "loo", "posterior", "optimistic", "pessimistic"])
@pytest.mark.parametrize("reward", [0, 1])
def test_a_group_of_one_start_node_and_equal_rewards_has_zero_advantages(method, reward):
    result = staged_advantages([-1], [0] * 5, [reward] * 5, method)
    assert result.advantage.tolist() == [0.0] * 5
    assert np.isnan(result.satisfaction)


def test_all_equal_real_rewards_have_zero_z_scores_in_spite_of_rounding():
    result = staged_advantages([-1], [0] * 3, [0.1] * 3, "grpo", order=[])
    assert result.advantage.tolist() == [0.0] * 3


def test_a_single_sample_has_a_zero_advantage_whatever_the_method():
    for method in ("grpo", "flat", "trace", "expectation", "loo", "posterior", "qp-hard", "qp-convex", "qp-soft"):
        assert staged_advantages([-1, 0], [1], [1], method).advantage.tolist() == [0.0]


def test_leave_one_out_falls_back_to_the_nearest_ancestor_with_company():
    # Node 3 below 2 below 1 below the root; the only other samples are at the root and at node 1.
    result = staged_advantages([-1, 0, 1, 2], [3, 1, 0], [1, 1, 0], "loo")
    assert result.value.tolist() == [1.0, 1.0, 1.0]
    result = staged_advantages([-1, 0, 1, 2], [3, 0, 0], [1, 1, 0], "loo")
    assert result.value.tolist() == [0.5, 0.5, 1.0]


def test_the_posterior_of_a_lone_sample_is_the_prior():
    result = staged_advantages([-1, 0], [1], [1], "posterior", prior_mean=0.25)
    assert result.value.tolist() == [0.25]


def test_the_posterior_shrinks_each_node_toward_its_parent():
    # Root: (1 + 2 * 0.5) / (2 + 2) without the sample itself; node 1: (1 + 2 * root) / (1 + 2).
    result = staged_advantages([-1, 0], [1, 1, 0], [1, 1, 0], "posterior", prior_strength=2.0, prior_mean=0.5)
    assert result.value[0] == pytest.approx((1 + 2 * 0.5) / 3)
    assert result.value[2] == pytest.approx((2 + 2 * 0.5) / 4)


def test_trace_on_a_chain_is_expectation_on_that_chain():
    parent, node, reward = [-1, 0, 1, 1, 2], [0, 1, 2, 4], [0, 0, 1, 1]
    trace = staged_advantages(parent, node, reward, "trace")
    assert trace.value.tolist() == [0.5, 2 / 3, 1.0, 1.0]
    assert np.array_equal(trace.advantage, staged_advantages(parent, node, reward, "expectation").advantage)


def test_trace_ignores_history_off_its_chain():
    parent, node, reward = [-1, 0, 0], [0, 1], [0, 1]
    history = Outcomes(np.array([0.0, 2.0, 8.0]), np.array([0.0, 0.0, 8.0]))
    trace = staged_advantages(parent, node, reward, "trace", scope="history", history=history)
    tree = staged_advantages(parent, node, reward, "expectation", scope="history", history=history)
    assert trace.value.tolist() == [1 / 4, 1 / 3]
    assert tree.value.tolist() == [9 / 12, 1 / 3]


def test_trace_refuses_samples_of_two_branches():
    with pytest.raises(GroupError, match="samples part below node 0"):
        staged_advantages([-1, 0, 0], [1, 2], [0, 1], "trace")
    with pytest.raises(GroupError, match=r"samples part below node 1 \(group 1\)"):
        staged_advantages_batch(
            [-1, -1, 0, 1, 1],
            [0, 1, 5],
            [0, 2, 3],
            [1, 0, 1],
            [0, 1, 3],
            AdvantageSettings(method=AdvantageMethod.TRACE),
        )


def test_history_counts_like_samples_of_the_group():
    history = Outcomes(np.array([0.0, 3.0]), np.array([0.0, 3.0]))
    kwargs: dict[str, Any] = {"scope": "history", "history": history}
    assert staged_advantages([-1, 0], [0, 1], [0, 0], "expectation", **kwargs).value.tolist() == [3 / 5, 3 / 4]
    assert staged_advantages([-1, 0], [0, 1], [0, 0], "optimistic", **kwargs).value.tolist() == [1.0, 1.0]
    assert staged_advantages([-1, 0], [0, 1], [0, 0], "pessimistic", **kwargs).value.tolist() == [0.0, 0.0]


def test_monte_carlo_values_come_with_their_hoeffding_half_width():
    rollouts = Outcomes(np.array([4.0, 16.0]), np.array([1.0, 16.0]))
    result = staged_advantages([-1, 0], [0, 1], [0, 1], "mc", rollouts=rollouts, confidence=0.95)
    assert result.value.tolist() == [0.25, 1.0]
    assert result.half_width == pytest.approx(np.sqrt(np.log(2 / 0.05) / (2 * np.array([4, 16]))))


def test_a_chain_of_100_000_nodes_is_no_obstacle_to_any_method():
    P = 100_000
    node, reward = [0, P // 2, P - 1, P - 1], [0, 0, 1, 0]
    for method in ("trace", "expectation", "optimistic", "pessimistic", "loo", "posterior", "qp-hard"):
        result = staged_advantages(np.arange(-1, P - 1), node, reward, method)
        assert result.order.tolist() == [[1, 2], [0, 2]]
        assert np.isfinite(result.advantage).all()


def test_a_batch_equals_its_groups_one_by_one():
    rng = np.random.default_rng(3)
    cases = []
    for _ in range(40):
        P, N = rng.integers(1, 12), rng.integers(1, 9)
        parent = [-1, *(int(rng.integers(0, p)) for p in range(1, P))]
        cases.append((parent, rng.integers(0, P, N).tolist(), rng.integers(0, 2, N).tolist()))
    parents, nodes, rewards = zip(*cases, strict=True)
    parent_offset = np.cumsum([0, *map(len, parents)])
    sample_offset = np.cumsum([0, *map(len, nodes)])
    for method in (
        "grpo",
        "flat",
        "expectation",
        "optimistic",
        "pessimistic",
        "loo",
        "posterior",
        "qp-hard",
        "qp-soft",
    ):
        batch = staged_advantages_batch(
            np.concatenate(parents),
            parent_offset,
            np.concatenate(nodes),
            np.concatenate(rewards),
            sample_offset,
            AdvantageSettings(method=AdvantageMethod(method), solver=Solver.EXACT),
        )
        for g, case in enumerate(cases):
            alone = staged_advantages(*case, method, solver="exact")
            samples = slice(sample_offset[g], sample_offset[g + 1])
            assert np.array_equal(batch.advantage[samples], alone.advantage)
            assert np.array_equal(batch.value[samples], alone.value)
            assert np.array_equal(batch.order[batch.order_offset[g] : batch.order_offset[g + 1]], alone.order)
            assert np.array_equal(batch.satisfaction[g], alone.satisfaction, equal_nan=True)
            assert batch.dropped[g] == alone.dropped
            assert batch.variance[g] == pytest.approx(np.var(alone.advantage), abs=1e-15)
            if batch.solve is not None:
                assert batch.solve.group(g) == alone.solve
