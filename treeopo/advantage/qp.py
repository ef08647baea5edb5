"""Staged advantages as a quadratic program (SPEC §5, Eq. 1): three variants, two solvers, checked optima."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from treeopo.advantage import exact, kernels, soft
from treeopo.advantage.result import Floats, Ints, Solve, SolveStatus
from treeopo.advantage.settings import AdvantageSettings, Infeasible, Method, Solver
from treeopo.errors import GroupError


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


def solve(program: Program, settings: AdvantageSettings, is_contradictory: bool = False) -> tuple[Floats, Solve]:
    """Solve every group's program: advantages (N,) and how it went.

    Groups without a solution get their soft program's optimum; `is_contradictory` says so of all of them beforehand.
    Raises GroupError naming the first such group if `settings.infeasible` is `raise`.
    """
    G = program.sample_offset.size - 1
    if is_contradictory:
        status_G = np.full(G, int(SolveStatus.INFEASIBLE))
        advantage_N, iterations_G = np.empty(program.target.size), np.zeros(G, np.int64)
    elif settings.solver is Solver.SLSQP:
        status_G, advantage_N, iterations_G = _solve_slsqp(program, settings)
    else:
        status_G, advantage_N, iterations_G = _solve_exact(program, settings)
    for g in np.flatnonzero(status_G >= SolveStatus.INFEASIBLE):
        if settings.infeasible is Infeasible.RAISE:
            raise GroupError(
                f"group {g}: {settings.method} has no solution ({SolveStatus(int(status_G[g])).name}); "
                "use smaller margins, or infeasible='soft'"
            )
        samples = slice(program.sample_offset[g], program.sample_offset[g + 1])
        _, advantage_N[samples], steps = soft.soften(*program.group(g), settings.penalty)
        iterations_G[g] += steps
    sum_G, excess_G, order_G = kernels.miss_groups(
        advantage_N, program.sample_offset, program.order, program.order_offset, program.margin
    )
    return advantage_N, Solve(status_G, iterations_G, sum_G, norm_residual(settings.method, excess_G), order_G)


def solve_exactly(
    method: Method, target: Floats, order: npt.NDArray[Any], margin: Floats, penalty: float
) -> tuple[SolveStatus, Floats, int]:
    """One program with centred target (N,), edges (E, 2) and margins (E,), exactly: (status, a (N,), steps)."""
    if method is Method.QP_SOFT:
        status, a, steps = soft.soften(target, order, margin, penalty)
    else:
        status, a, steps = exact.solve_one(method is Method.QP_HARD, target, order, margin)
    return SolveStatus(status), a, steps


def norm_residual(method: Method, excess: Floats) -> Floats:
    """What |a|^2 - N = `excess` misses of the method's norm condition."""
    if method is Method.QP_HARD:
        return np.abs(excess)
    return np.maximum(0.0, excess) if method is Method.QP_CONVEX else np.zeros_like(excess)


def _solve_exact(program: Program, settings: AdvantageSettings) -> tuple[Ints, Floats, Ints]:
    groups = (program.target, program.sample_offset, program.order, program.order_offset, program.margin)
    if settings.method is Method.QP_SOFT:
        return soft.soften_groups(*groups, settings.penalty)
    return exact.solve_groups(settings.method is Method.QP_HARD, *groups)


def _solve_slsqp(program: Program, settings: AdvantageSettings) -> tuple[Ints, Floats, Ints]:
    """The paper's solver, group by group."""
    from treeopo.advantage.slsqp import minimise  # scipy.optimize: not before it is needed

    G = program.sample_offset.size - 1
    advantage_N = np.empty(program.target.size)
    status_G, iterations_G = np.empty(G, np.int64), np.empty(G, np.int64)
    for g in range(G):
        status, a, iterations_G[g] = minimise(settings.method, *program.group(g), settings.penalty)
        if status is not SolveStatus.OPTIMAL:
            # The exact solver tells an impossible or degenerate program from a search that merely failed.
            reason, least, _ = solve_exactly(settings.method, *program.group(g), settings.penalty)
            if reason is SolveStatus.DEGENERATE:
                a = least
            if reason is not SolveStatus.OPTIMAL:
                status = reason
        advantage_N[program.sample_offset[g] : program.sample_offset[g + 1]] = a
        status_G[g] = status
    return status_G, advantage_N, iterations_G
