"""The student's success from every prefix, estimated from few outcomes by shrinking to the parent and the depth."""

import numpy as np
import numpy.typing as npt

from treeopo.records import Outcomes
from treeopo.tree.topology import as_parents

FloatArray = npt.NDArray[np.float64]


def estimated_success(
    parent: npt.ArrayLike, depth: npt.NDArray[np.int32], outcomes: Outcomes, strength: float
) -> FloatArray:
    """Success (P,) from each node, in (0, 1), of a forest whose outcomes (P,) are counted by start node.

        m(p) = (success(p) + k prior(p)) / (total(p) + k),    k = strength
        logit prior(p) = logit m_d + logit m(parent) - logit m_(d - 1),    d = depth of p;    m_0 at a root

    m_d is the mean at depth d, itself shrunk to 1/2 with k outcomes. So a node that was never tried is as far above its
    depth's mean, in log-odds, as its parent is: the problem's and the depth's effect add up (the model of Rasch 1960),
    and k outcomes of its own count as much as that. parent (P,): -1 at a root, every parent before its children.
    """
    from treeopo.tree.kernels import shrunken_success  # numba: not before it is needed

    total_D = np.bincount(depth, outcomes.total)
    success_D = np.bincount(depth, outcomes.success)
    mean_D = (success_D + 0.5 * strength) / (total_D + strength)
    estimate_P = np.empty(len(depth))
    shrunken_success(as_parents(parent), depth, outcomes.total, outcomes.success, mean_D, strength, estimate_P)
    return estimate_P
