"""Arguments and results of the public functions besides bare arrays. Importing it compiles nothing."""

from dataclasses import dataclass
from enum import IntEnum
from typing import assert_never

import numpy as np
import numpy.typing as npt

from treeopo.advantage.settings import AdvantageMethod, QpMethod

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class SolveStatus(IntEnum):
    """How a group's program ended. INFEASIBLE and NOT_CONVERGED carry the soft program's optimum instead."""

    OPTIMAL = 0
    DEGENERATE = 1  # qp-hard, constant target: every direction is as good, so zeros (the least norm, with margins)
    INFEASIBLE = 2  # contradictory order, or margins that the norm cannot hold
    NOT_CONVERGED = 3


@dataclass(frozen=True, slots=True)
class GroupSolve:
    """How one group's program ended; see `Solve`."""

    status: SolveStatus
    iterations: int
    sum_residual: float
    norm_residual: float
    order_residual: float


@dataclass(frozen=True, slots=True)
class Solve:
    """How the programs of G groups ended, every array (G,).

    status           values of `SolveStatus`
    iterations       SLSQP's major iterations, or the steps of the active set (Newton's, for qp-soft)
    sum_residual     |sum of a|
    norm_residual    how far |a|^2 is from N (qp-hard) or above N (qp-convex)
    order_residual   worst a_i + margin - a_j above 0; what qp-soft and a fall back trade off, otherwise an error
    """

    status: Ints
    iterations: Ints
    sum_residual: Floats
    norm_residual: Floats
    order_residual: Floats

    @property
    def fell_back(self) -> npt.NDArray[np.bool_]:
        """(G,) groups that carry the soft program's optimum."""
        return self.status >= SolveStatus.INFEASIBLE

    def group(self, g: int) -> GroupSolve:
        """Group g alone."""
        return GroupSolve(
            SolveStatus(int(self.status[g])),
            int(self.iterations[g]),
            float(self.sum_residual[g]),
            float(self.norm_residual[g]),
            float(self.order_residual[g]),
        )


def norm_residual(method: QpMethod, excess: Floats) -> Floats:
    """What |a|^2 - N = `excess` misses of the method's norm condition."""
    match method:
        case AdvantageMethod.QP_HARD:
            return np.abs(excess)
        case AdvantageMethod.QP_CONVEX:
            return np.maximum(0.0, excess)
        case AdvantageMethod.QP_SOFT:
            return np.zeros_like(excess)
        case _:
            assert_never(method)


@dataclass(frozen=True, slots=True)
class StagedAdvantages:
    """The advantages of one group of N samples, with what led to them.

    advantage (N,)   what multiplies the policy gradient
    value (N,)       baseline V of each sample's prefix; of the target, for qp-*
    raw (N,)         r - alpha V, before centring
    order (E, 2)     constraints (i, j), meaning a_i < a_j, as sample indices (docs/advantages.md, Order constraints)
    satisfaction     share of them that hold; nan without any
    dropped          sibling pairs left out of the order because each would have to be below the other
    half_width       mc: Hoeffding half-width (N,) of `value`; otherwise None
    solve            qp-*: how the program ended; otherwise None
    """

    advantage: Floats
    value: Floats
    raw: Floats
    order: npt.NDArray[np.int32]
    satisfaction: float
    dropped: int
    half_width: Floats | None
    solve: GroupSolve | None


@dataclass(frozen=True, slots=True)
class AdvantageBatch:
    """The advantages of G groups: samples concatenated (N,), diagnostics per group (G,).

    Fields as in `StagedAdvantages`; `order` (E, 2) holds indices within each group, group g's at
    order_offset[g]:order_offset[g + 1]; `variance` (G,) is the population variance of each group's advantages.
    """

    advantage: Floats
    value: Floats
    raw: Floats
    order: npt.NDArray[np.int32]
    order_offset: Ints
    satisfaction: Floats
    dropped: Ints
    variance: Floats
    half_width: Floats | None
    solve: Solve | None
