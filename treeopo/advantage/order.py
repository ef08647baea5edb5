"""The order constraints of a group (Tree-OPO §3.2), read off its tree, for a forest with one tree per group.

Their definition, and where it is stricter than the paper's: docs/advantages.md, Order constraints.

Nothing is compared that yields no constraint: ancestors are reached through `above`, the nearest ancestor with a
failing sample, and siblings through their parent's list of barren nodes.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from treeopo.advantage.result import Ints
from treeopo.tree.compile import kernel
from treeopo.tree.topology import NO_PARENT

Bools = npt.NDArray[np.bool_]

NONE = -1


class Outlook(NamedTuple):
    """What the group's samples did at every node and below, all (P,) but `next_failing`.

    A node with failures and no success of its own is proven if a descendant succeeded, barren if none did.
    """

    failing: Ints  # failing samples that start here
    first_failing: Ints  # the first of them; `next_failing` (N,) leads on, ascending
    next_failing: Ints
    above: Ints  # nearest proper ancestor with a failing sample
    failing_above: Ints  # failing samples at all proper ancestors
    is_proven: Bools
    proven_children: Ints  # failing samples at the proven children of a node
    barren_children: Ints  # ... and at its barren ones
    first_barren: Ints  # the first barren child; `next_barren` leads to its next barren sibling
    next_barren: Ints


@kernel
def _outlook(parent_P: Ints, node_N: Ints, failed_N: Bools) -> Outlook:
    P, N = parent_P.size, node_N.size
    failing, success, first_failing = np.zeros(P, np.int64), np.zeros(P, np.int64), np.full(P, NONE)
    next_failing = np.empty(N, np.int64)
    for n in range(N - 1, -1, -1):
        p = node_N[n]
        if failed_N[n]:
            failing[p] += 1
            next_failing[n], first_failing[p] = first_failing[p], n
        else:
            success[p] += 1

    subtree, is_proven = success.copy(), np.zeros(P, np.bool_)
    proven_children, barren_children = np.zeros(P, np.int64), np.zeros(P, np.int64)
    first_barren, next_barren = np.full(P, NONE), np.full(P, NONE)
    for p in range(P - 1, -1, -1):
        q = parent_P[p]
        if q == NO_PARENT:
            continue
        subtree[q] += subtree[p]
        if failing[p] > 0 and success[p] == 0:
            is_proven[p] = subtree[p] > 0
            if is_proven[p]:
                proven_children[q] += failing[p]
            else:
                barren_children[q] += failing[p]
                next_barren[p], first_barren[q] = first_barren[q], p

    above, failing_above = np.full(P, NONE), np.zeros(P, np.int64)
    for p in range(P):
        q = parent_P[p]
        if q != NO_PARENT:
            above[p] = q if failing[q] > 0 else above[q]
            failing_above[p] = failing_above[q] + failing[q]
    return Outlook(
        failing, first_failing, next_failing, above, failing_above,
        is_proven, proven_children, barren_children, first_barren, next_barren,
    )  # fmt: skip


@kernel
def tree_order(
    parent_P: Ints, node_N: Ints, failed_N: Bools, sample_offset: Ints
) -> tuple[npt.NDArray[Any], Bools, Ints, Ints]:
    """Pairs and triplets in O(P + N + E): order_E2 (within each group), is_pair_E, order_offset, dropped_G."""
    G = sample_offset.size - 1
    at = _outlook(parent_P, node_N, failed_N)
    order_offset, dropped_G = np.zeros(G + 1, np.int64), np.zeros(G, np.int64)
    for g in range(G):
        E = 0
        for n in range(sample_offset[g], sample_offset[g + 1]):
            p = node_N[n]
            if not failed_N[n]:
                E += at.failing_above[p]
            elif at.is_proven[p]:
                E += at.barren_children[parent_P[p]]
                # Partners on other proven siblings; every mutual pair is met from both sides.
                dropped_G[g] += at.proven_children[parent_P[p]] - at.failing[p]
        dropped_G[g] //= 2
        order_offset[g + 1] = order_offset[g] + E

    order_E2, is_pair_E = np.empty((order_offset[G], 2), np.int32), np.empty(order_offset[G], np.bool_)
    e = 0
    for g in range(G):
        start = sample_offset[g]
        for n in range(start, sample_offset[g + 1]):
            is_pair = not failed_N[n]
            # The nodes whose failing samples n is constrained with: below it in a pair, above it in a triplet.
            p = NONE
            if is_pair:
                p = at.above[node_N[n]]
            elif at.is_proven[node_N[n]]:
                p = at.first_barren[parent_P[node_N[n]]]
            while p != NONE:
                k = at.first_failing[p]
                while k != NONE:
                    low, high = (k, n) if is_pair else (n, k)
                    order_E2[e, 0], order_E2[e, 1], is_pair_E[e] = low - start, high - start, is_pair
                    e += 1
                    k = at.next_failing[k]
                p = at.above[p] if is_pair else at.next_barren[p]
    return order_E2, is_pair_E, order_offset, dropped_G
