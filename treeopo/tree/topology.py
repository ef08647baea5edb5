"""What makes an array of parents a tree: parents first, `NO_PARENT` at a root."""

from typing import Any

import numpy as np
import numpy.typing as npt

from treeopo.errors import TreeError

NO_PARENT = -1


def check_parents(parent: npt.ArrayLike) -> npt.NDArray[np.integer[Any]]:
    """Return parent (P,) as a contiguous int32 or int64 array after proving that it is a forest, parents first.

    Raises TreeError naming the offending node.
    """
    parent_P = as_parents(parent)
    wrong_P = (parent_P >= np.arange(parent_P.size)) | (parent_P < NO_PARENT)
    if wrong_P.any():
        raise misplaced(parent_P, int(np.argmax(wrong_P)))
    return parent_P


def as_parents(parent: npt.ArrayLike) -> npt.NDArray[np.integer[Any]]:
    """Return parent (P,) as a contiguous int32 or int64 array, its values unchecked. Raises TreeError."""
    parent_P = np.ascontiguousarray(parent)
    if parent_P.ndim != 1 or parent_P.size == 0:
        raise TreeError(f"parent: expected one entry per node, shape (P,), got shape {parent_P.shape}")
    if parent_P.dtype.kind not in "iu":
        raise TreeError(f"parent: expected integers ({NO_PARENT} at a root), got {parent_P.dtype}")
    return parent_P if parent_P.dtype in (np.int32, np.int64) else parent_P.astype(np.int64)


def misplaced(parent_P: npt.NDArray[np.integer[Any]], node: int) -> TreeError:
    """The error to raise about `node`, whose parent is not an earlier node."""
    P = parent_P.size
    given = f"parent[{node}] = {parent_P[node]}"
    if not NO_PARENT <= parent_P[node] < P:
        return TreeError(f"{given} is neither {NO_PARENT} nor one of the {P} nodes")
    path, here = [node], int(parent_P[node])
    while 0 <= here < P and here not in path:
        path.append(here)
        here = int(parent_P[here])
    if here == node:
        return TreeError(f"parent: nodes {' -> '.join(map(str, [*path, node]))} form a cycle")
    return TreeError(f"{given} comes after its child; list every parent before its children")
