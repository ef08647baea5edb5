"""qp-soft, and what a program without a solution falls back to (Tree-OPO App. B; docs/advantages.md, The program).

    minimise |a - t|^2 + penalty sum over edges (i, j) of max(0, a_i - a_j + margin)^2

Strictly convex whatever the edges say, cycles included. The penalty moves mass along edges, so sums are kept.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from treeopo.advantage.result import Floats, Ints, SolveStatus
from treeopo.tree.compile import kernel

Order = npt.NDArray[Any]

OPTIMAL, NOT_CONVERGED = int(SolveStatus.OPTIMAL), int(SolveStatus.NOT_CONVERGED)


@kernel
def _gradient(a: Floats, target: Floats, order: Order, margin: Floats, penalty: float) -> tuple[float, Floats]:
    """Half of |a - t|^2 + penalty sum max(0, a_i - a_j + margin)^2, and its gradient (N,)."""
    gradient = a - target
    value = float(gradient @ gradient)
    for e in range(order.shape[0]):
        excess = a[order[e, 0]] - a[order[e, 1]] + margin[e]
        if excess > 0.0:
            value += penalty * excess * excess
            gradient[order[e, 0]] += penalty * excess
            gradient[order[e, 1]] -= penalty * excess
    return 0.5 * value, gradient


@kernel
def _direction(violated: Order, gradient: Floats, penalty: float) -> Floats:
    """Solve (I + penalty L) d = -gradient by conjugate gradients, L the Laplacian of the violated edges.

    Preconditioned by the diagonal, which leaves dense graphs with few distinct eigenvalues.
    """
    diagonal = np.ones(gradient.size)
    for e in range(violated.shape[0]):
        diagonal[violated[e, 0]] += penalty
        diagonal[violated[e, 1]] += penalty
    d, residual = np.zeros(gradient.size), -gradient
    scaled = residual / diagonal
    p = scaled.copy()
    square = residual @ scaled
    enough = 1e-26 * square
    for _ in range(10 * gradient.size):
        if square <= enough:
            break
        curved = p.copy()
        for e in range(violated.shape[0]):
            i, j = violated[e, 0], violated[e, 1]
            rise = penalty * (p[i] - p[j])
            curved[i] += rise
            curved[j] -= rise
        length = square / (p @ curved)
        d += length * p
        residual -= length * curved
        scaled = residual / diagonal
        before, square = square, residual @ scaled
        p = scaled + (square / before) * p
    return d


@kernel
def soften(target: Floats, order: Order, margin: Floats, penalty: float) -> tuple[int, Floats, int]:
    """Minimise |a - t|^2 + penalty sum max(0, a_i - a_j + margin)^2: (status, a (N,), steps).

    Newton's method on a convex piecewise quadratic with backtracking: finite, whatever the edges say.
    """
    a = target.copy()
    E = order.shape[0]
    violated = np.empty((E, 2), np.int64)
    value, gradient = _gradient(a, target, order, margin, penalty)
    enough = 1e-13 * max(1.0, np.abs(target).max()) * (1.0 + penalty)
    for step in range(200):
        if np.abs(gradient).max() <= enough:
            return OPTIMAL, a, step
        count = 0
        for e in range(E):
            if a[order[e, 0]] - a[order[e, 1]] + margin[e] > 0.0:
                violated[count, 0], violated[count, 1] = order[e, 0], order[e, 1]
                count += 1
        d = _direction(violated[:count], gradient, penalty)
        fall = -(gradient @ d)
        length = 1.0
        while True:
            trial = a + length * d
            trial_value, trial_gradient = _gradient(trial, target, order, margin, penalty)
            # Near the optimum the value no longer resolves the progress that the gradient still shows.
            if trial_value <= value - 1e-4 * length * fall + 1e-15 * abs(value) or length < 1e-10:
                break
            length *= 0.5
        a, value, gradient = trial, trial_value, trial_gradient
    return NOT_CONVERGED, a, 200


@kernel
def soften_groups(
    target_N: Floats, sample_offset: Ints, order_E2: Order, order_offset: Ints, margin_E: Floats, penalty: float
) -> tuple[Ints, Floats, Ints]:
    """`soften` for every group: status_G, advantage_N, steps_G."""
    G = sample_offset.size - 1
    advantage_N = np.empty(target_N.size)
    status_G, steps_G = np.empty(G, np.int64), np.empty(G, np.int64)
    for g in range(G):
        samples = slice(sample_offset[g], sample_offset[g + 1])
        edges = slice(order_offset[g], order_offset[g + 1])
        status_G[g], advantage_N[samples], steps_G[g] = soften(
            target_N[samples], order_E2[edges], margin_E[edges], penalty
        )
    return status_G, advantage_N, steps_G
