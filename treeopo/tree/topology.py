"""What makes an array of parents a tree (SPEC §2): parents first, `NO_PARENT` at a root."""

from typing import Any

import numpy as np
import numpy.typing as npt

from treeopo.errors import TreeError

NO_PARENT = -1


def check_parents(parent: npt.ArrayLike) -> npt.NDArray[np.integer[Any]]:
    """Return parent (P,) as a contiguous int32 or int64 array after proving that it is a forest, parents first.

    Raises TreeError naming the offending node.
    """
    parent_P = np.ascontiguousarray(parent)
    if parent_P.ndim != 1 or parent_P.size == 0:
        raise TreeError(f"parent: expected one entry per node, shape (P,), got shape {parent_P.shape}")
    if parent_P.dtype.kind not in "iu":
        raise TreeError(f"parent: expected integers ({NO_PARENT} at a root), got {parent_P.dtype}")
    if parent_P.dtype not in (np.int32, np.int64):
        parent_P = parent_P.astype(np.int64)
    wrong_P = (parent_P >= np.arange(parent_P.size)) | (parent_P < NO_PARENT)
    if wrong_P.any():
        raise TreeError(_describe(parent_P, int(np.argmax(wrong_P))))
    return parent_P


def _describe(parent_P: npt.NDArray[np.integer[Any]], node: int) -> str:
    """Say what is wrong at `node`, the first whose parent is not an earlier node."""
    P = parent_P.size
    given = f"parent[{node}] = {parent_P[node]}"
    if not NO_PARENT <= parent_P[node] < P:
        return f"{given} is neither {NO_PARENT} nor one of the {P} nodes"
    path, here = [node], int(parent_P[node])
    while 0 <= here < P and here not in path:
        path.append(here)
        here = int(parent_P[here])
    if here == node:
        return f"parent: nodes {' -> '.join(map(str, [*path, node]))} form a cycle"
    return f"{given} comes after its child; list every parent before its children"
