"""Staged advantages as a quadratic program (Tree-OPO Eq. 1, App. A, App. B): three variants, two solvers, checked."""

from dataclasses import dataclass
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt

from treeopo.advantage import exact, kernels, soft
from treeopo.advantage.result import Floats, Ints, Solve, SolveStatus, norm_residual
from treeopo.advantage.settings import AdvantageMethod, AdvantageSettings, Infeasible, QpMethod, Solver
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
    method, G = settings.program, program.sample_offset.size - 1
    assert method is not None, f"{settings.method} solves no program"
    if is_contradictory:
        status_G = np.full(G, int(SolveStatus.INFEASIBLE))
        advantage_N, iterations_G = np.empty(program.target.size), np.zeros(G, np.int64)
    else:
        status_G, advantage_N, iterations_G = _solve_all(program, method, settings)
    for g in np.flatnonzero(status_G >= SolveStatus.INFEASIBLE):
        match settings.infeasible:
            case Infeasible.SOFT:
                samples = slice(program.sample_offset[g], program.sample_offset[g + 1])
                _, advantage_N[samples], steps = soft.soften(*program.group(g), settings.penalty)
                iterations_G[g] += steps
            case Infeasible.RAISE:
                raise GroupError(
                    f"group {g}: {method} has no solution ({SolveStatus(int(status_G[g])).name}); "
                    "use smaller margins, or infeasible='soft'"
                )
            case _ as unknown:
                assert_never(unknown)
    sum_G, excess_G, order_G = kernels.miss_groups(
        advantage_N, program.sample_offset, program.order, program.order_offset, program.margin
    )
    return advantage_N, Solve(status_G, iterations_G, sum_G, norm_residual(method, excess_G), order_G)


def solve_exactly(
    method: QpMethod, target: Floats, order: npt.NDArray[Any], margin: Floats, penalty: float
) -> tuple[SolveStatus, Floats, int]:
    """One program with centred target (N,), edges (E, 2) and margins (E,), exactly: (status, a (N,), steps)."""
    match method:
        case AdvantageMethod.QP_HARD | AdvantageMethod.QP_CONVEX:
            status, a, steps = exact.solve_one(method is AdvantageMethod.QP_HARD, target, order, margin)
        case AdvantageMethod.QP_SOFT:
            status, a, steps = soft.soften(target, order, margin, penalty)
        case _:
            assert_never(method)
    return SolveStatus(status), a, steps


def _solve_all(program: Program, method: QpMethod, settings: AdvantageSettings) -> tuple[Ints, Floats, Ints]:
    """Status (G,), advantages (N,) and iterations (G,) by the solver that the settings name."""
    match settings.solver:
        case Solver.SLSQP:
            return _solve_slsqp(program, method, settings.penalty)
        case Solver.EXACT:
            return _solve_exact(program, method, settings.penalty)
        case _ as unknown:
            assert_never(unknown)


def _solve_exact(program: Program, method: QpMethod, penalty: float) -> tuple[Ints, Floats, Ints]:
    groups = (program.target, program.sample_offset, program.order, program.order_offset, program.margin)
    match method:
        case AdvantageMethod.QP_HARD | AdvantageMethod.QP_CONVEX:
            return exact.solve_groups(method is AdvantageMethod.QP_HARD, *groups)
        case AdvantageMethod.QP_SOFT:
            return soft.soften_groups(*groups, penalty)
        case _:
            assert_never(method)


def _solve_slsqp(program: Program, method: QpMethod, penalty: float) -> tuple[Ints, Floats, Ints]:
    """The paper's solver, group by group."""
    from treeopo.advantage.slsqp import minimise  # scipy.optimize: not before it is needed

    G = program.sample_offset.size - 1
    advantage_N = np.empty(program.target.size)
    status_G, iterations_G = np.empty(G, np.int64), np.empty(G, np.int64)
    for g in range(G):
        status, a, iterations_G[g] = minimise(method, *program.group(g), penalty)
        if status is not SolveStatus.OPTIMAL:
            # The exact solver tells an impossible or degenerate program from a search that merely failed.
            reason, least, _ = solve_exactly(method, *program.group(g), penalty)
            if reason is SolveStatus.DEGENERATE:
                a = least
            if reason is not SolveStatus.OPTIMAL:
                status = reason
        advantage_N[program.sample_offset[g] : program.sample_offset[g + 1]] = a
        status_G[g] = status
    return status_G, advantage_N, iterations_G
