"""Success and total of every subtree: what the baselines of Tree-OPO (arXiv 2509.09284) §3.3 are made of."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from treeopo.errors import TreeError
from treeopo.tree.topology import NO_PARENT, as_parents, misplaced


@dataclass(frozen=True, slots=True)
class SubtreeStatistics:
    """What the samples at or below each node did.

    total (P,) and success (P,) have the dtype of the counts given; `exists` (P,) is success > 0, `every` (P,) is
    success = total, which is true where there are no samples.
    """

    total: npt.NDArray[Any]
    success: npt.NDArray[Any]
    exists: npt.NDArray[np.bool_]
    every: npt.NDArray[np.bool_]


def subtree_statistics(parent: npt.ArrayLike, total: npt.NDArray[Any], success: npt.NDArray[Any]) -> SubtreeStatistics:
    """Sum the counts of samples that start at each node, total (P,) and success (P,), over every subtree.

    One reverse pass, O(P) whatever the depth; `parent` (P,) may hold a forest, the inputs are left alone.
    Raises TreeError if the arrays do not describe one tree or forest of the same size.
    """
    from treeopo.tree.kernels import accumulate  # numba: not before it is needed

    parent_P = as_parents(parent)
    for name, count in (("total", total), ("success", success)):
        if count.shape != parent_P.shape:
            raise TreeError(f"{name}: expected shape {parent_P.shape} as parent has, got {count.shape}")
    total_P, success_P = np.array(total), np.array(success)
    exists_P, every_P = np.empty(parent_P.size, np.bool_), np.empty(parent_P.size, np.bool_)
    wrong = accumulate(parent_P, total_P, success_P, exists_P, every_P)
    if wrong != NO_PARENT:
        raise misplaced(parent_P, wrong)
    return SubtreeStatistics(total_P, success_P, exists_P, every_P)
