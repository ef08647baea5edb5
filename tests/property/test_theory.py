"""The paper's theory (Tree-OPO §3.5, App. A), and docs/advantages.md, Exact solutions, on random trees and groups.

Expectations over completions are sums over every outcome, so unbiasedness is checked to rounding, not by sampling.
"""

from itertools import product
from math import comb, exp

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import isotonic_regression

from tests.profiles import examples
from tests.property.advantage_oracles import Group, Program, groups, programs, project, trees
from treeopo.advantage import AdvantageSettings, Outcomes, exact, staged_advantages, staged_advantages_batch
from treeopo.advantage.baselines import hoeffding_half_width

EXAMPLES = examples(5)

C = 3  # completions of every prefix


@st.composite
def policies(draw, N=3):
    """A tabular softmax policy: (parent, start nodes (N,), logits (P, C), which completions succeed (P, C))."""
    parent = draw(trees(max_nodes=5))
    P = len(parent)
    node = draw(st.lists(st.integers(0, P - 1), min_size=N, max_size=N))
    logits = draw(st.lists(st.floats(-2, 2), min_size=P * C, max_size=P * C))
    solved = draw(st.lists(st.booleans(), min_size=P * C, max_size=P * C))
    return parent, np.array(node), np.reshape(logits, (P, C)), np.reshape(solved, (P, C)).astype(float)


def softmax(logits_PC):
    weight_PC = np.exp(logits_PC)
    return weight_PC / weight_PC.sum(axis=1, keepdims=True)


def true_gradient(policy):
    """Gradient (P, C) of the mean success probability over the start nodes."""
    _, node, logits_PC, solved_PC = policy
    probability_PC = softmax(logits_PC)
    value_P1 = (probability_PC * solved_PC).sum(axis=1, keepdims=True)
    visits_P = np.bincount(node, minlength=len(logits_PC))
    return (visits_P / len(node))[:, None] * probability_PC * (solved_PC - value_P1)


def expected_estimate(policy, advantage, rollouts=None, **settings):
    """E of (1/N) sum_k a_k grad log pi(c_k | p_k) over all C^N outcomes; `advantage` names the field that is a."""
    parent, node, logits_PC, solved_PC = policy
    outcomes_GN = np.array(list(product(range(C), repeat=len(node))))
    G, N = outcomes_GN.shape
    batch = staged_advantages_batch(
        np.tile(parent, G),
        np.arange(G + 1) * len(parent),
        np.tile(node, G),
        solved_PC[node, outcomes_GN].ravel(),
        np.arange(G + 1) * N,
        AdvantageSettings(**settings),
        rollouts=rollouts and Outcomes(np.tile(rollouts.total, G), np.tile(rollouts.success, G)),
    )
    advantage_GN = getattr(batch, advantage).reshape(G, N)
    probability_PC = softmax(logits_PC)
    chance_G = probability_PC[node, outcomes_GN].prod(axis=1)
    gradient_PC = np.zeros_like(logits_PC)
    for k, p in enumerate(node):
        score_GC = np.eye(C)[outcomes_GN[:, k]] - probability_PC[p]
        gradient_PC[p] += (chance_G * advantage_GN[:, k]) @ score_GC / N
    return gradient_PC


def assert_close(left, right):
    np.testing.assert_allclose(left, right, rtol=0, atol=1e-13)


fixed_values = st.lists(st.integers(0, 8), min_size=3, max_size=3).map(
    lambda successes: Outcomes(np.full(3, 8.0), np.array(successes, dtype=float))
)


@EXAMPLES
@given(policies(), st.floats(0, 1), fixed_values)
def test_lemma_3_1_a_baseline_fixed_before_the_samples_leaves_the_gradient_unbiased(policy, alpha, values):
    estimate = expected_estimate(policy, "raw", values, method="mc", alpha=alpha)
    assert_close(estimate, true_gradient(policy))


@EXAMPLES
@given(policies(), st.floats(0, 1), st.sampled_from(["loo", "posterior"]))
def test_lemma_3_1_extends_to_baselines_that_leave_the_sample_out(policy, alpha, method):
    assert_close(expected_estimate(policy, "raw", method=method, alpha=alpha), true_gradient(policy))


@EXAMPLES
@given(policies(), st.floats(0, 1), fixed_values)
def test_mean_centring_shrinks_the_gradient_by_one_nth_and_keeps_its_direction(policy, alpha, values):
    N = len(policy[1])
    for estimate in (
        expected_estimate(policy, "advantage", values, method="mc", alpha=alpha),
        expected_estimate(policy, "advantage", method="flat"),
    ):
        assert_close(estimate, (1 - 1 / N) * true_gradient(policy))


def test_the_papers_group_scope_shrinks_a_lone_leaf_by_alpha():
    # Two leaves with one sample each: V_E(p) is the sample's own reward, so a' = (1 - alpha) r.
    policy = [-1, 0, 0], np.array([1, 2]), np.array([[0.0] * 3, [0.0, 1.0, -1.0], [0.5, 0.0, 0.0]]), np.eye(3)
    assert_close(expected_estimate(policy, "raw", method="expectation", alpha=0.5), 0.5 * true_gradient(policy))


@EXAMPLES
@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 1), st.floats(-1, 2)), min_size=1, max_size=8),
    st.floats(0, 1),
)
def test_lemma_3_2_the_expected_reward_is_the_baseline_of_least_variance(prefixes, alpha):
    value, share, other = np.array(prefixes).T
    share /= share.sum()

    def variance(baseline):
        # r is Bernoulli(value) at a prefix drawn by `share`.
        mean = share @ (value - baseline)
        second = share @ (value * (1 - baseline) ** 2 + (1 - value) * baseline**2)
        return second - mean**2

    for baseline in (other, alpha * value, np.zeros_like(value), np.full_like(value, share @ value)):
        assert variance(value) <= variance(baseline) + 1e-12
    # It also aligns best with the reward: Cov(r, V) is largest among baselines of its own spread.
    covariance = share @ (value * other) - (share @ value) * (share @ other)
    spread = {name: np.sqrt(max(0.0, share @ v**2 - (share @ v) ** 2)) for name, v in (("V", value), ("b", other))}
    assert covariance <= spread["V"] * spread["b"] + 1e-12


@EXAMPLES
@given(groups(), st.sampled_from(["rewards", "expectation", "optimistic", "loo", "posterior"]))
def test_theorem_a4_the_projection_never_increases_the_variance(group: Group, target):
    heuristic = "flat" if target == "rewards" else target
    before = staged_advantages(*group, heuristic).advantage
    result = staged_advantages(*group, "qp-convex", target=target, solver="exact")
    assert np.var(result.advantage) <= np.var(before) + 1e-15
    broken = [before[i] > before[j] + 1e-9 for i, j in result.order]
    if any(broken):
        assert np.var(result.advantage) < np.var(before)
    else:
        assert_close(result.advantage, before)


@EXAMPLES
@given(programs(margins=(0.0,)))
def test_corollary_a5_variance_stays_at_most_one_and_falls_strictly_where_the_order_was_broken(program: Program):
    target, order, margin = program
    status, a, _ = exact.solve_one(False, target, order, margin)
    assert status == exact.OPTIMAL
    assert np.var(a) <= min(1.0, float(np.var(target))) + 1e-12
    if (target[order[:, 0]] > target[order[:, 1]] + 1e-6).any():
        assert np.var(a) < np.var(target)


@EXAMPLES
@given(programs(margins=(0.0,)), st.integers(0, 2**32))
def test_theorem_a7_the_projection_is_nearer_to_every_consistent_value_function(program: Program, seed):
    estimate, order, margin = program
    _, projected, _, _ = exact.project(estimate, order, margin)
    rng = np.random.default_rng(seed)
    for _ in range(5):
        consistent = project(rng.normal(size=estimate.size), order, margin)
        assert np.linalg.norm(projected - consistent) <= np.linalg.norm(estimate - consistent) + 1e-9


@EXAMPLES
@given(groups(), st.floats(-1, 1))
def test_a8_the_mean_is_the_constant_that_leaves_the_least_second_moment(group: Group, other):
    result = staged_advantages(*group, "expectation")
    assert np.mean(result.advantage**2) <= np.mean((result.raw - other) ** 2) + 1e-15
    # Centring keeps every difference between stages; dividing by the deviation would not.
    assert_close(np.subtract.outer(result.advantage, result.advantage), np.subtract.outer(result.raw, result.raw))


@EXAMPLES
@given(st.floats(0, 1), st.integers(1, 40), st.floats(0.5, 0.99))
def test_a9_monte_carlo_values_are_unbiased_with_their_variance_and_hoeffding_coverage(value, M, confidence):
    success_M = np.arange(M + 1)
    chance_M = np.array([comb(M, s) * value**s * (1 - value) ** (M - s) for s in success_M])
    rollouts = Outcomes(np.full(M + 1, float(M)), success_M.astype(float))
    result = staged_advantages([-1], [0] * (M + 1), [0] * (M + 1), "mc", rollouts=rollouts, confidence=confidence)
    assert chance_M @ result.value == pytest.approx(value, abs=1e-12)
    assert chance_M @ (result.value - value) ** 2 == pytest.approx(value * (1 - value) / M, abs=1e-12)
    half_width = hoeffding_half_width(M, confidence)
    assert 2 * exp(-2 * M * half_width**2) == pytest.approx(1 - confidence)
    outside = np.abs(result.value - value) >= half_width
    assert chance_M[outside].sum() <= 1 - confidence + 1e-12


@EXAMPLES
@given(programs(margins=(0.0, 0.01, 0.3)), st.floats(-3, 3))
def test_exact_solutions_1_projections_keep_sums(program: Program, shift):
    target, order, margin = program
    _, a, _, _ = exact.project(target + shift, order, margin)
    assert a.sum() == pytest.approx(target.size * shift, abs=1e-11)


@EXAMPLES
@given(groups())
def test_exact_solutions_2_the_ball_is_never_active_for_binary_rewards_without_margins(group: Group):
    N, centred = len(group[1]), staged_advantages(*group, "flat").advantage
    a = staged_advantages(*group, "qp-convex", solver="exact").advantage
    assert a @ a <= centred @ centred + 1e-12 <= N / 4 + 1e-11 < N


@EXAMPLES
@given(
    groups(),
    st.sampled_from(["flat", "expectation", "optimistic", "loo"]),
    st.sampled_from([0.0, 1e-3, 0.3]),
    st.sampled_from([0.0, 1e-2, 0.2]),
)
def test_exact_solutions_3_margins_are_a_shift(group: Group, heuristic, pair, triplet):
    _, node, reward = group
    before = staged_advantages(*group, heuristic)
    low, high = before.order[:, 0], before.order[:, 1]
    margin = np.where(np.array(reward)[high] == 1, pair, triplet)
    # Every constraint rises from a failure with a successful descendant (h = 0) to a failure without, or a success.
    h = np.zeros(len(node))
    h[high] = margin
    assert np.array_equal(h[high] - h[low], margin)
    _, direct, _, _ = exact.project(before.advantage, before.order, margin)
    _, shifted, _, _ = exact.project(before.advantage - h, before.order, np.zeros(len(margin)))
    assert_close(direct, h + shifted)


@EXAMPLES
@given(groups(), st.integers(0, 2**32))
def test_exact_solutions_4_no_feasible_point_of_the_sphere_beats_the_scaled_projection(group: Group, seed):
    result = staged_advantages(*group, "qp-hard", solver="exact")
    reward, N = np.array(group[2], dtype=float), len(group[1])
    assume(0 < reward.sum() < N)
    target = reward - reward.mean()
    margin = np.where(reward[result.order[:, 1]] == 1, 0.0, 1e-2)
    rng = np.random.default_rng(seed)
    for spread in (0.01, 0.1, 1.0):
        point = target * np.sqrt(N / (target @ target)) + spread * rng.normal(size=N)
        point = project(point - point.mean(), result.order, margin)
        if not point.any():  # the order left it no direction to scale
            continue
        point *= np.sqrt(N / (point @ point))
        if (point[result.order[:, 0]] + margin <= point[result.order[:, 1]]).all():
            assert np.sum((point - target) ** 2) >= np.sum((result.advantage - target) ** 2) - 1e-9


@EXAMPLES
@given(groups(), st.sampled_from(["slsqp", "exact"]))
def test_exact_solutions_5_without_margins_the_programs_return_plain_baselines(group: Group, solver):
    plain = {"solver": solver, "margin_pair": 0.0, "margin_triplet": 0.0}
    flat, grpo = staged_advantages(*group, "flat").advantage, staged_advantages(*group, "grpo").advantage
    for method, expected in (("qp-convex", flat), ("qp-soft", flat), ("qp-hard", grpo)):
        found = staged_advantages(*group, method, **plain).advantage
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 if solver == "exact" else 1e-6)


@EXAMPLES
@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=30))
def test_exact_solutions_6_on_a_chain_the_projection_is_isotonic_regression(values):
    target = np.array(values, dtype=float)
    chain = np.array([[i, i + 1] for i in range(target.size - 1)], dtype=np.int32).reshape(-1, 2)
    _, a, _, _ = exact.project(target, chain, np.zeros(len(chain)))
    np.testing.assert_allclose(a, isotonic_regression(target).x, rtol=0, atol=1e-12)


@EXAMPLES
@given(groups(), st.sampled_from(["qp-hard", "qp-convex"]), st.sampled_from([1e-3, 1e-2, 0.1]))
def test_lemma_3_3_the_optimum_ranks_every_constrained_pair_by_its_margin(group: Group, method, margin):
    result = staged_advantages(*group, method, solver="exact", margin_pair=margin, margin_triplet=margin)
    for i, j in result.order:
        assert result.advantage[i] + margin <= result.advantage[j] + 1e-9
    assert np.isnan(result.satisfaction) or result.satisfaction == 1.0
