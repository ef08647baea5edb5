"""qp-hard and qp-convex solved exactly: an active set on a forest of tight constraints.

    minimise |a - t|^2   subject to   a_i + margin <= a_j  for every edge (i, j)

The dual of an edge is mass that flows from i to j. Tight edges form a forest whose trees move as rigid blocks, so the
dual active-set method of Goldfarb and Idnani (1983) needs no linear algebra here: a step lowers the block of i, raises
the block of j, and reroutes the flow along their tree edges; an edge that runs dry splits its block. Any directed graph
and any margins will do; without margins this is isotonic regression, and projections keep sums.

The ball and the sphere of radius sqrt(N) need only a scalar on top: a(s) = P(s t), |a(s)| grows with s.
Why all of this holds: docs/advantages.md, Exact solutions, 1, 4 and 6.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from treeopo.advantage.result import Floats, Ints, SolveStatus
from treeopo.tree.compile import kernel

Order = npt.NDArray[Any]

NONE = -1

EARLY_ROUNDS = 12  # of `_project`; after them every violation is taken as it comes

OPTIMAL, DEGENERATE = int(SolveStatus.OPTIMAL), int(SolveStatus.DEGENERATE)
INFEASIBLE, NOT_CONVERGED = int(SolveStatus.INFEASIBLE), int(SolveStatus.NOT_CONVERGED)


class ClosureForest(NamedTuple):
    """Tight edges and the scratch of a walk over them, allocated once for the largest group.

    Slot s is an edge (ends[2s], ends[2s + 1]); half-edges 2s and 2s + 1 are in the lists of their ends.
    """

    ends: Ints  # (2N,) the sample a half-edge is at
    after: Ints  # (2N,) next and previous half-edge in the same list
    before: Ints
    free: Ints  # (2N,) unused slots; the last entry counts them
    head: Ints  # (N,) first half-edge of a sample
    seen_i: Ints  # (N,) samples in the order of a walk
    seen_j: Ints
    up: Ints  # (N,) where the walk reached a sample from, and through which slot
    up_slot: Ints
    moved: Ints  # (N,) the round in which a sample's block last moved
    flow: Floats  # (N,) dual of a slot's edge, never negative
    margin: Floats  # (N,)
    gain: Floats  # (N,) what a unit of flow through the walk's root adds to the slot a sample was reached through


@kernel
def empty_forest(N: int) -> ClosureForest:
    """Room for the programs of groups of up to N samples."""
    h, n, x = np.empty((4, 2 * N), np.int64), np.empty((6, N), np.int64), np.empty((3, N))
    return ClosureForest(h[0], h[1], h[2], h[3], n[0], n[1], n[2], n[3], n[4], n[5], x[0], x[1], x[2])


@kernel
def _clear(forest: ClosureForest, N: int) -> None:
    for n in range(N):
        forest.head[n] = NONE
        forest.free[n] = n
        forest.moved[n] = 0
    forest.free[-1] = N


@kernel
def _add(forest: ClosureForest, i: int, j: int, flow: float, margin: float) -> None:
    forest.free[-1] -= 1
    slot = forest.free[forest.free[-1]]
    forest.flow[slot], forest.margin[slot] = flow, margin
    for half, node in ((2 * slot, i), (2 * slot + 1, j)):
        forest.ends[half] = node
        forest.after[half], forest.before[half] = forest.head[node], NONE
        if forest.head[node] != NONE:
            forest.before[forest.head[node]] = half
        forest.head[node] = half


@kernel
def _remove(forest: ClosureForest, slot: int) -> None:
    for half in (2 * slot, 2 * slot + 1):
        before, after = forest.before[half], forest.after[half]
        if before != NONE:
            forest.after[before] = after
        else:
            forest.head[forest.ends[half]] = after
        if after != NONE:
            forest.before[after] = before
    forest.free[forest.free[-1]] = slot
    forest.free[-1] += 1


@kernel
def _walk(forest: ClosureForest, root: int, seen: Ints) -> int:
    """Breadth first through the tree of `root`: fill seen, up and up_slot; return its number of samples."""
    seen[0], forest.up[root], forest.up_slot[root] = root, NONE, NONE
    size, at = 1, 0
    while at < size:
        node = seen[at]
        at += 1
        half = forest.head[node]
        while half != NONE:
            if half // 2 != forest.up_slot[node]:
                other = forest.ends[half ^ 1]
                forest.up[other], forest.up_slot[other] = node, half // 2
                seen[size] = other
                size += 1
            half = forest.after[half]
    return size


@kernel
def _reroute(forest: ClosureForest, i: int, j: int) -> tuple[int, float]:
    """Both ends in one block, walked from i: move flow from the tree path to the edge (i, j) until a slot runs dry.

    Returns (that slot, the flow moved), or NONE if every path edge points from j to i: a cycle.
    """
    dry, least = NONE, np.inf
    node = j
    while node != i:
        slot = forest.up_slot[node]
        if forest.ends[2 * slot] == forest.up[node] and forest.flow[slot] < least:
            dry, least = slot, forest.flow[slot]
        node = forest.up[node]
    if dry != NONE:
        node = j
        while node != i:
            slot = forest.up_slot[node]
            forest.flow[slot] += -least if forest.ends[2 * slot] == forest.up[node] else least
            node = forest.up[node]
    return dry, least


@kernel
def _spread(forest: ClosureForest, seen: Ints, size: int, share: float) -> tuple[int, float]:
    """Set `gain`, what each walked tree edge gains when its block passes `share` per sample to the root.

    Returns (slot, amount) of the first edge to run dry as the amount passed grows.
    """
    dry, least = NONE, np.inf
    for k in range(size):
        forest.gain[seen[k]] = share
    for k in range(size - 1, 0, -1):
        node = seen[k]
        slot, passed = forest.up_slot[node], forest.gain[node]
        forest.gain[forest.up[node]] += passed
        gain = passed if forest.ends[2 * slot] == node else -passed
        forest.gain[node] = gain
        if gain < 0.0 and forest.flow[slot] < -least * gain:
            dry, least = slot, -forest.flow[slot] / gain
    return dry, least


@kernel
def _shift(forest: ClosureForest, seen: Ints, size: int, pushed: float, a: Floats, by: float) -> None:
    a[seen[0]] += by
    for k in range(1, size):
        node = seen[k]
        a[node] += by
        forest.flow[forest.up_slot[node]] += pushed * forest.gain[node]


@kernel
def _tighten(forest: ClosureForest, i: int, j: int, margin: float, a: Floats, limit: int) -> int:
    """Push flow along the violated edge (i, j) until it is tight: number of steps, 0 where a cycle forbids it."""
    seen_i, seen_j = forest.seen_i, forest.seen_j
    pushed = 0.0
    for step in range(1, limit):
        size_i = _walk(forest, i, seen_i)
        together = False
        for k in range(size_i):
            together |= seen_i[k] == j
        if together:
            dry, amount = _reroute(forest, i, j)
            if dry == NONE:
                return 0
            pushed += amount
        else:
            size_j = _walk(forest, j, seen_j)
            full = max(0.0, (a[i] - a[j] + margin) / (1.0 / size_i + 1.0 / size_j))
            dry, amount = _spread(forest, seen_i, size_i, 1.0 / size_i)
            dry_j, amount_j = _spread(forest, seen_j, size_j, -1.0 / size_j)
            if amount_j < amount:
                dry, amount = dry_j, amount_j
            if full <= amount:
                dry, amount = NONE, full
            _shift(forest, seen_i, size_i, amount, a, -amount / size_i)
            _shift(forest, seen_j, size_j, amount, a, amount / size_j)
            pushed += amount
            if dry == NONE:
                _add(forest, i, j, pushed, margin)
                return step
        _remove(forest, dry)
    return limit


@kernel
def _settle(forest: ClosureForest, target: Floats, a: Floats, block: Ints) -> None:
    """Recompute a (N,) from the blocks alone, free of the drift of many shifts; set block labels (N,)."""
    seen, offset = forest.seen_i, forest.gain
    block[:] = NONE
    for n in range(a.size):
        if block[n] != NONE:
            continue
        size = _walk(forest, n, seen)
        offset[n], total = 0.0, target[n]
        block[n] = n
        for k in range(1, size):
            node = seen[k]
            slot = forest.up_slot[node]
            above = offset[forest.up[node]]
            is_upper_end = forest.ends[2 * slot + 1] == node
            offset[node] = above + forest.margin[slot] if is_upper_end else above - forest.margin[slot]
            total += target[node] - offset[node]
            block[node] = n
        for k in range(size):
            a[seen[k]] = total / size + offset[seen[k]]


@kernel
def _squared_norm(a: Floats) -> float:
    total = 0.0
    for n in range(a.size):
        total += a[n] * a[n]
    return total


@kernel
def _worst(a: Floats, order: Order, margin: Floats) -> float:
    worst = 0.0
    for e in range(order.shape[0]):
        worst = max(worst, a[order[e, 0]] - a[order[e, 1]] + margin[e])
    return worst


@kernel
def _project(
    forest: ClosureForest, target: Floats, order: Order, margin: Floats, a: Floats, block: Ints
) -> tuple[int, int]:
    """`project` into a (N,) and block (N,): (status, steps).

    Blocks that grow evenly need few steps, so early rounds take the graver violations alone and move no block twice.
    """
    N, E = target.size, order.shape[0]
    scale = 1.0
    for n in range(N):
        a[n], block[n] = target[n], n
        scale = max(scale, abs(target[n]))
    for e in range(E):
        scale = max(scale, margin[e])
    tolerance = 1e-13 * scale
    round_, steps, limit = 0, 0, 1000 + 100 * (N + E)
    worst = _worst(a, order, margin)
    if worst > tolerance:
        _clear(forest, N)
    while worst > tolerance:
        round_ += 1
        is_early = round_ <= EARLY_ROUNDS
        threshold = 0.5 * worst if is_early else tolerance
        for e in range(E):
            i, j = int(order[e, 0]), int(order[e, 1])
            if a[i] - a[j] + margin[e] <= threshold:
                continue
            if is_early and (forest.moved[i] == round_ or forest.moved[j] == round_):
                continue
            taken = _tighten(forest, i, j, margin[e], a, limit - steps)
            steps += taken
            if taken == 0 or steps >= limit:
                return INFEASIBLE if taken == 0 else NOT_CONVERGED, steps
            if is_early:
                for k in range(_walk(forest, i, forest.seen_i)):
                    forest.moved[forest.seen_i[k]] = round_
        worst = _worst(a, order, margin)
    if steps > 0:
        _settle(forest, target, a, block)
    return OPTIMAL, steps


@kernel
def project(target: Floats, order: Order, margin: Floats) -> tuple[int, Floats, Ints, int]:
    """Project target (N,) onto the order (E, 2) with margins (E,): (status, a (N,), block labels (N,), steps).

    INFEASIBLE if the edges contain a cycle whose margins sum to more than zero.
    """
    a, block = np.empty(target.size), np.empty(target.size, np.int64)
    status, steps = _project(empty_forest(target.size), target, order, margin, a, block)
    return status, a, block, steps


@kernel
def _next_scale(target: Floats, a: Floats, block: Ints, s: float) -> float:
    """Where |a(s)|^2 = N on the piece of a(s) = P(s target) that s is on; infinity if it never is."""
    N = a.size
    total, size = np.zeros(N), np.zeros(N)
    for n in range(N):
        total[block[n]] += target[n]
        size[block[n]] += 1.0
    squares, slope, growth = 0.0, 0.0, 0.0  # |a|^2, a . a' and |a'|^2; a' is the block's mean of the target
    for n in range(N):
        mean = total[block[n]] / size[block[n]]
        squares += a[n] * a[n]
        slope += a[n] * mean
        growth += mean * mean
    under_root = slope * slope + growth * (N - squares)
    root = slope + np.sqrt(max(0.0, under_root))
    return s + (N - squares) / root if under_root > 0.0 and root != 0.0 else np.inf


@kernel
def _to_radius(forest: ClosureForest, target: Floats, order: Order, margin: Floats, a: Floats) -> tuple[int, int]:
    """a(s) = P(s target) with |a(s)|^2 = N, into a (N,): (status, steps).

    Where the blocks stay the same a(s) is affine in s, so each attempt solves the quadratic of the current piece; a
    bracket catches the attempts that leave it. INFEASIBLE if even P(0), the least norm, is too long. NOT_CONVERGED if
    |a(s)| stays below the radius for every s: the target opposes the order, and no direction is left to grow in.
    """
    N = target.size
    block = np.empty(N, np.int64)
    low, high, s, steps = 0.0, np.inf, np.sqrt(N / _squared_norm(target)), 0
    for attempt in range(200):
        if attempt == 3 and low == 0.0:  # still too long: is any s short enough?
            status, taken = _project(forest, 0.0 * target, order, margin, a, block)
            steps += taken
            least = _squared_norm(a) - N
            if least > -1e-12 * N:  # at zero the ball touches the order in this one point
                return OPTIMAL if least < 1e-12 * N else INFEASIBLE, steps
        if not low < s < high:
            s = 0.5 * (low + high)
        status, taken = _project(forest, s * target, order, margin, a, block)
        steps += taken
        excess = _squared_norm(a) - N
        if status != OPTIMAL or abs(excess) <= 1e-13 * N or (high < np.inf and high - low <= 1e-15 * high):
            return status, steps
        if excess < 0.0:
            low = s
        else:
            high = s
        s = _next_scale(target, a, block, s)
        if high == np.inf:
            s = min(s, 16.0 * low)
            if s * s * _squared_norm(target) > 1e18 * N:
                break
    return NOT_CONVERGED, steps


@kernel
def _solve(
    forest: ClosureForest, is_hard: bool, target: Floats, order: Order, margin: Floats, a: Floats
) -> tuple[int, int]:
    """`solve_one` into a (N,): (status, steps)."""
    N, given = target.size, _squared_norm(target)
    steps, is_cone = 0, True
    for e in range(margin.size):
        is_cone &= margin[e] == 0.0
    if given == 0.0 or is_cone or not is_hard:
        status, steps = _project(forest, target, order, margin, a, np.empty(N, np.int64))
        length = _squared_norm(a)
        if status != OPTIMAL or (not is_hard and length <= N):
            return status, steps
        if given == 0.0:
            # Every feasible point of the sphere is as close to 0 as any other: keep the smallest point of the order.
            return DEGENERATE if is_hard else INFEASIBLE, steps
        if is_cone:  # a(s) = s P(target), unless the target opposes the order altogether
            if length <= 1e-18 * given:
                return NOT_CONVERGED, steps
            for n in range(N):
                a[n] *= np.sqrt(N / length)
            return OPTIMAL, steps
    # For the ball |P(target)| > sqrt(N), so that s < 1: the multiplier of the ball is 1/s - 1.
    status, more = _to_radius(forest, target, order, margin, a)
    return status, steps + more


@kernel
def solve_one(is_hard: bool, target: Floats, order: Order, margin: Floats) -> tuple[int, Floats, int]:
    """qp-hard or qp-convex of one group with centred target (N,): (status, a (N,), steps)."""
    a = np.empty(target.size)
    status, steps = _solve(empty_forest(target.size), is_hard, target, order, margin, a)
    return status, a, steps


@kernel
def solve_groups(
    is_hard: bool, target_N: Floats, sample_offset: Ints, order_E2: Order, order_offset: Ints, margin_E: Floats
) -> tuple[Ints, Floats, Ints]:
    """`solve_one` for every group: status_G, advantage_N, steps_G."""
    G = sample_offset.size - 1
    advantage_N = np.empty(target_N.size)
    status_G, steps_G = np.empty(G, np.int64), np.empty(G, np.int64)
    largest = 0
    for g in range(G):
        largest = max(largest, sample_offset[g + 1] - sample_offset[g])
    forest = empty_forest(largest)
    for g in range(G):
        samples = slice(sample_offset[g], sample_offset[g + 1])
        edges = slice(order_offset[g], order_offset[g + 1])
        status_G[g], steps_G[g] = _solve(
            forest, is_hard, target_N[samples], order_E2[edges], margin_E[edges], advantage_N[samples]
        )
    return status_G, advantage_N, steps_G
