"""Staged advantages (Tree-OPO §3): baselines over a prefix tree, order constraints, and the quadratic program.

staged.py      the public functions: one group, or a batch of groups
settings.py    AdvantageSettings, the paper's values as defaults
result.py      arguments and results
checks.py      validation of arguments
baselines.py   V of every prefix
order.py       the constraints of a group, read off its tree
kernels.py     compiled passes: loo, posterior, centring, satisfaction, residuals
qp.py          the program's variants; slsqp.py, exact.py and soft.py solve them

Importing this package loads numpy alone; numba and scipy.optimize come with the first call that needs them.
"""

from treeopo.advantage.result import AdvantageBatch, GroupSolve, Solve, SolveStatus, StagedAdvantages
from treeopo.advantage.settings import AdvantageMethod, AdvantageSettings, Infeasible, Scope, Solver
from treeopo.advantage.staged import staged_advantages, staged_advantages_batch
from treeopo.records import Outcomes

Method = AdvantageMethod
"""The name that `AdvantageMethod` had in version 0.1."""

__all__ = [
    "AdvantageBatch",
    "AdvantageMethod",
    "AdvantageSettings",
    "GroupSolve",
    "Infeasible",
    "Method",
    "Outcomes",
    "Scope",
    "Solve",
    "SolveStatus",
    "Solver",
    "StagedAdvantages",
    "staged_advantages",
    "staged_advantages_batch",
]
