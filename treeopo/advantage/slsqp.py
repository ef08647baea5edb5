"""The paper's solver of the staged-advantage program: SciPy's SLSQP (App. B), with analytic gradients."""

from typing import Any, assert_never

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from treeopo.advantage import kernels
from treeopo.advantage.result import Floats, SolveStatus, norm_residual
from treeopo.advantage.settings import AdvantageMethod, QpMethod
from treeopo.errors import GroupError

MAX_ITERATIONS = 1000
FTOL = 1e-8

# What an accepted solution may miss its conditions by, per sample: SLSQP stops at its ftol.
RESIDUAL_TOLERANCE = 1e-6

# SLSQP keeps several dense copies of the (E, N) Jacobian.
_LARGEST_JACOBIAN = 20_000_000


def minimise(
    method: QpMethod, target: Floats, order: npt.NDArray[Any], margin: Floats, penalty: float
) -> tuple[SolveStatus, Floats, int]:
    """Solve one program from the paper's warm start, the centred target (N,): (status, a (N,), major iterations).

    OPTIMAL only if SLSQP says so and the residuals agree. Raises GroupError if the dense Jacobian would not fit.
    """
    N, E = target.size, order.shape[0]
    if method is not AdvantageMethod.QP_SOFT and N * E > _LARGEST_JACOBIAN:
        raise GroupError(f"slsqp: a Jacobian of {E} constraints by {N} samples is too large; use solver='exact'")
    if method is AdvantageMethod.QP_HARD and not target.any():
        return SolveStatus.DEGENERATE, target, 0
    norm = _norm_condition(method)
    lower, upper = order[:, 0], order[:, 1]

    def objective(a: Floats) -> tuple[float, Floats]:
        difference = a - target
        return float(difference @ difference), 2.0 * difference

    def soft_objective(a: Floats) -> tuple[float, Floats]:
        value, gradient = objective(a)
        excess = np.maximum(0.0, a[lower] - a[upper] + margin)
        pull = 2.0 * penalty * excess
        slope = np.bincount(lower, pull, N) - np.bincount(upper, pull, N)
        return value + penalty * float(excess @ excess), gradient + slope

    constraints: list[Any] = [{"type": "eq", "fun": np.sum, "jac": np.ones_like}]
    if norm is not None:
        constraints.append({"type": norm, "fun": lambda a: N - a @ a, "jac": lambda a: -2.0 * a})
        if E:
            jacobian = np.zeros((E, N))
            jacobian[np.arange(E), lower] -= 1.0
            jacobian[np.arange(E), upper] += 1.0
            constraints.append({"type": "ineq", "fun": lambda a: jacobian @ a - margin, "jac": lambda a: jacobian})
    result = minimize(
        soft_objective if norm is None else objective,
        target,
        jac=True,
        method="SLSQP",
        constraints=constraints,
        options={"maxiter": MAX_ITERATIONS, "ftol": FTOL},
    )
    a = np.asarray(result.x, dtype=np.float64)
    total, excess, violation = kernels.miss(a, order, margin)
    worst = max(total, float(norm_residual(method, np.array(excess))), 0.0 if norm is None else violation)
    accepted = bool(result.success) and np.isfinite(a).all() and worst <= RESIDUAL_TOLERANCE * N
    return (SolveStatus.OPTIMAL if accepted else SolveStatus.NOT_CONVERGED), a, int(result.nit)


def _norm_condition(method: QpMethod) -> str | None:
    """SciPy's word for what |a|^2 must be to N; None where neither the norm nor the order is a condition."""
    match method:
        case AdvantageMethod.QP_HARD:
            return "eq"
        case AdvantageMethod.QP_CONVEX:
            return "ineq"
        case AdvantageMethod.QP_SOFT:
            return None
        case _:
            assert_never(method)
