"""Staged advantages as a quadratic program (SPEC §5, Eq. 1): three variants, two solvers, checked optima."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from treeopo.advantage import exact
from treeopo.advantage.result import Floats, Ints, Solve, SolveStatus
from treeopo.advantage.settings import AdvantageSettings, Infeasible, Method, Solver
from treeopo.errors import GroupError

VARIANTS = {Method.QP_HARD: exact.HARD, Method.QP_CONVEX: exact.CONVEX, Method.QP_SOFT: exact.SOFT}


@dataclass(frozen=True, slots=True)
class Program:
    """The programs of G groups: centred targets (N,), group-local edges (E, 2) with margins (E,), offsets (G + 1,)."""

    target: Floats
    sample_offset: Ints
    order: npt.NDArray[np.int32]
    order_offset: Ints
    margin: Floats

    def group(self, g: int) -> tuple[Floats, npt.NDArray[np.int32], Floats]:
        """(target, order, margin) of group g."""
        edges = slice(self.order_offset[g], self.order_offset[g + 1])
        return self.target[self.sample_offset[g] : self.sample_offset[g + 1]], self.order[edges], self.margin[edges]


def solve(program: Program, settings: AdvantageSettings) -> tuple[Floats, Solve]:
    """Solve every group's program: advantages (N,) and how it went.

    Raises GroupError naming the group if one has no solution and `settings.infeasible` is `raise`.
    """
    variant = VARIANTS[settings.method]
    if settings.solver is Solver.EXACT:
        advantage_N, status_G, iterations_G = exact.solve_groups(
            variant,
            program.target,
            program.sample_offset,
            program.order,
            program.order_offset,
            program.margin,
            settings.penalty,
        )
    else:
        advantage_N, status_G, iterations_G = _solve_slsqp(variant, program, settings.penalty)
    if settings.infeasible is Infeasible.RAISE and (status_G >= SolveStatus.INFEASIBLE).any():
        g = int(np.argmax(status_G >= SolveStatus.INFEASIBLE))
        raise GroupError(
            f"group {g}: {settings.method} has no solution ({SolveStatus(int(status_G[g])).name}); "
            "use smaller margins, or infeasible='soft'"
        )
    return advantage_N, Solve(status_G, iterations_G, *_residuals(variant, advantage_N, program))


def solve_contradictory(program: Program, settings: AdvantageSettings) -> tuple[Floats, Solve]:
    """The soft relaxation of one group's program whose order is known to contain a cycle."""
    _, advantage_N, steps = exact.soften(*program.group(0), settings.penalty)
    status_G, steps_G = np.array([SolveStatus.INFEASIBLE], dtype=np.int64), np.array([steps])
    return advantage_N, Solve(status_G, steps_G, *_residuals(exact.SOFT, advantage_N, program))


def miss(variant: int, a: Floats, order: npt.NDArray[Any], margin: Floats) -> tuple[float, float, float]:
    """By how much a (N,) misses its conditions: (|sum|, norm, worst order violation), each at least 0."""
    excess = float(a @ a) - a.size
    norm = {exact.HARD: abs(excess), exact.CONVEX: max(0.0, excess), exact.SOFT: 0.0}[variant]
    violation = a[order[:, 0]] - a[order[:, 1]] + margin
    return abs(float(a.sum())), norm, max(0.0, float(violation.max(initial=0.0)))


def _solve_slsqp(variant: int, program: Program, penalty: float) -> tuple[Floats, Ints, Ints]:
    """The paper's solver, group by group, with the exact soft program where it fails."""
    from treeopo.advantage.slsqp import minimise  # scipy.optimize: not before it is needed

    G = program.sample_offset.size - 1
    advantage_N = np.empty(program.target.size)
    status_G, iterations_G = np.empty(G, np.int64), np.empty(G, np.int64)
    for g in range(G):
        status, a, iterations_G[g] = minimise(variant, *program.group(g), penalty)
        if status != SolveStatus.OPTIMAL:
            # The exact solver tells an impossible or degenerate program from a search that merely failed.
            reason, certain, _ = exact.solve_one(variant, *program.group(g), penalty)
            if reason == SolveStatus.DEGENERATE:
                status, a = SolveStatus.DEGENERATE, certain
            else:
                status = SolveStatus.INFEASIBLE if reason == SolveStatus.INFEASIBLE else SolveStatus.NOT_CONVERGED
                a = exact.soften(*program.group(g), penalty)[1]
        advantage_N[program.sample_offset[g] : program.sample_offset[g + 1]] = a
        status_G[g] = status
    return advantage_N, status_G, iterations_G


def _residuals(variant: int, advantage_N: Floats, program: Program) -> tuple[Floats, Floats, Floats]:
    bounds = zip(program.sample_offset[:-1], program.sample_offset[1:], strict=True)
    rows = [miss(variant, advantage_N[a:b], *program.group(g)[1:]) for g, (a, b) in enumerate(bounds)]
    sums, norms, orders = np.array(rows).T.copy()
    return sums, norms, orders
