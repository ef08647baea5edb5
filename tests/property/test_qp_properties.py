"""The two solvers against each other and against an independent projection; every result is checked."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.profiles import examples
from tests.property.advantage_oracles import Group, Program, groups, objective, programs, project
from treeopo.advantage import AdvantageMethod, AdvantageSettings, SolveStatus, exact, kernels, soft, staged_advantages
from treeopo.advantage.qp import solve_exactly
from treeopo.advantage.result import norm_residual
from treeopo.advantage.slsqp import minimise

QP = (AdvantageMethod.QP_HARD, AdvantageMethod.QP_CONVEX, AdvantageMethod.QP_SOFT)
TARGETS = ("rewards", "grpo", "expectation", "optimistic", "pessimistic", "loo")


@examples(10)
@given(programs())
def test_exact_projection_equals_non_negative_least_squares(program: Program):
    status, a, _, _ = exact.project(*program)
    assert status == SolveStatus.OPTIMAL
    np.testing.assert_allclose(a, project(*program), rtol=0, atol=1e-8)


@examples(10)
@given(programs())
def test_exact_projection_is_feasible_and_keeps_the_sum(program: Program):
    target, order, margin = program
    _, a, block, _ = exact.project(*program)
    assert abs(a.sum()) < 1e-12
    assert (a[order[:, 0]] + margin <= a[order[:, 1]] + 1e-12).all()
    # Each block moved as one: its mean is the target's.
    for label in set(block.tolist()):
        assert a[block == label].mean() == pytest.approx(target[block == label].mean(), abs=1e-12)


@examples(5)
@given(groups(), st.sampled_from(QP), st.sampled_from(TARGETS), st.sampled_from([None, 0.0, 0.05]))
def test_exact_is_never_worse_than_slsqp_on_trees(group: Group, method, target, margin):
    both = {"target": target, "margin_pair": margin, "margin_triplet": margin}
    exactly = staged_advantages(*group, method, solver="exact", **both)
    slsqp = staged_advantages(*group, method, solver="slsqp", **both)
    assert exactly.solve is not None
    assert slsqp.solve is not None
    if target == "rewards":
        assert exactly.solve.status in (SolveStatus.OPTIMAL, SolveStatus.DEGENERATE)
    assume(exactly.solve.status == slsqp.solve.status == SolveStatus.OPTIMAL)
    program = _program(group, method, both)
    best, found = (objective(method, x.advantage, *program, 1.0) for x in (exactly, slsqp))
    assert best <= found + 1e-7
    if method != "qp-hard":  # strictly convex: one optimum
        np.testing.assert_allclose(exactly.advantage, slsqp.advantage, rtol=0, atol=2e-3)


@examples(5)
@given(programs(), st.sampled_from(QP), st.sampled_from([0.1, 1.0, 100.0]))
def test_exact_is_never_worse_than_slsqp_on_any_program(program: Program, method, penalty):
    target, order, margin = program
    status, a, _ = solve_exactly(method, target, order, margin, penalty)
    other, b, _ = minimise(method, target, order, margin, penalty)
    if method == "qp-soft":
        assert status == SolveStatus.OPTIMAL
    assume(status == other == SolveStatus.OPTIMAL)
    # SLSQP may buy objective with the little it misses its conditions by.
    total, excess, violation = kernels.miss(b, order, margin)
    missed = total + float(norm_residual(method, np.array(excess))) + violation * (method != "qp-soft")
    assert objective(method, a, *program, penalty) <= objective(method, b, *program, penalty) + 1e-7 + 20 * missed


@examples(5)
@given(groups(), st.sampled_from(QP), st.sampled_from(TARGETS), st.sampled_from(["slsqp", "exact"]))
def test_every_result_is_finite_centred_and_within_its_residuals(group: Group, method, target, solver):
    result = staged_advantages(*group, method, target=target, solver=solver)
    assert result.solve is not None
    assert np.isfinite(result.advantage).all()
    assert abs(result.advantage.sum()) <= 1e-6
    assert result.solve.sum_residual == pytest.approx(abs(result.advantage.sum()), abs=1e-12)
    if result.solve.status == SolveStatus.OPTIMAL and method != "qp-soft":
        N = len(group[1])
        assert result.solve.norm_residual <= 1e-6 * N
        assert result.solve.order_residual <= 1e-6 * N
        if solver == "exact" and len(result.order) and max(AdvantageSettings(method=method).margins) > 0:
            assert result.solve.order_residual <= 1e-9


@examples(5)
@given(programs(max_edges=24, margins=(0.0, 0.01, 0.3, 2.0), acyclic=False), st.sampled_from([0.1, 1.0, 100.0]))
def test_the_soft_optimum_has_no_gradient_even_where_the_order_contradicts_itself(program: Program, penalty):
    target, order, margin = program
    status, a, _ = soft.soften(*program, penalty)
    assert status == SolveStatus.OPTIMAL
    pull = penalty * np.maximum(0.0, a[order[:, 0]] - a[order[:, 1]] + margin)
    gradient = a - target
    np.add.at(gradient, order[:, 0], pull)
    np.subtract.at(gradient, order[:, 1], pull)
    assert np.abs(gradient).max() <= 1e-12 * (1 + penalty) * 10


def _program(group: Group, method, both) -> Program:
    """(target, order, margin) of the group, rebuilt outside `staged_advantages`."""
    chosen = AdvantageSettings(method=method, **both)
    baseline = "flat" if both["target"] == "rewards" else both["target"]
    heuristic = staged_advantages(*group, baseline)
    reward = np.array(group[2])
    is_pair = reward[heuristic.order[:, 1]] == 1
    return heuristic.advantage, heuristic.order, np.where(is_pair, *chosen.margins)
