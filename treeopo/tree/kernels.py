"""Compiled passes over the nodes of a forest, children after parents."""

from typing import Any

import numpy as np
import numpy.typing as npt

from treeopo.tree.compile import kernel
from treeopo.tree.topology import NO_PARENT


@kernel
def accumulate(
    parent_P: npt.NDArray[Any],
    total_P: npt.NDArray[Any],
    success_P: npt.NDArray[Any],
    exists_P: npt.NDArray[np.bool_],
    every_P: npt.NDArray[np.bool_],
) -> int:
    """Turn per-node counts into per-subtree counts in place; a node is final when the pass reaches it.

    Returns the node whose parent is not an earlier node, where the pass stops, or NO_PARENT.
    """
    for p in range(parent_P.size - 1, -1, -1):
        total, success = total_P[p], success_P[p]
        exists_P[p] = success > 0
        every_P[p] = success == total
        above = parent_P[p]
        if above >= p or above < NO_PARENT:
            return p
        if above != NO_PARENT:
            total_P[above] += total
            success_P[above] += success
    return NO_PARENT


@kernel
def shrunken_success(
    parent_P: npt.NDArray[Any],
    depth_P: npt.NDArray[Any],
    total_P: npt.NDArray[np.float64],
    success_P: npt.NDArray[np.float64],
    mean_D: npt.NDArray[np.float64],
    strength: float,
    estimate_P: npt.NDArray[np.float64],
) -> None:
    """Fill estimate_P as `treeopo.tree.success` defines it; odds are held within a million to one."""
    for p in range(parent_P.size):
        odds = mean_D[depth_P[p]] / (1.0 - mean_D[depth_P[p]])
        above = parent_P[p]
        if above != NO_PARENT:
            mean = mean_D[depth_P[p] - 1]
            odds *= estimate_P[above] / (1.0 - estimate_P[above]) * (1.0 - mean) / mean
            odds = min(max(odds, 1e-6), 1e6)
        estimate_P[p] = (success_P[p] + strength * odds / (1.0 + odds)) / (total_P[p] + strength)
