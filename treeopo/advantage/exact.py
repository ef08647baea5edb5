"""The programs of SPEC §5 solved exactly: an active set on a forest of tight constraints.

    minimise |a - t|^2   subject to   a_i + margin <= a_j  for every edge (i, j)

The dual of an edge is mass that flows from i to j. Tight edges form a forest whose trees move as rigid blocks, so the
dual active-set method of Goldfarb and Idnani (1983) needs no linear algebra here: a step lowers the block of i, raises
the block of j, and reroutes the flow along their tree edges; an edge that runs dry splits its block. Any directed graph
and any margins will do; without margins this is isotonic regression (fact 6). Projections keep sums (fact 1).

The ball and the sphere of radius sqrt(N) need only a scalar on top: a(s) = P(s t), |a(s)| grows with s (fact 4).
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from treeopo.advantage.result import Floats, Ints, SolveStatus
from treeopo.tree.compile import kernel

Order = npt.NDArray[Any]

NONE = -1

OPTIMAL, DEGENERATE = int(SolveStatus.OPTIMAL), int(SolveStatus.DEGENERATE)
INFEASIBLE, NOT_CONVERGED = int(SolveStatus.INFEASIBLE), int(SolveStatus.NOT_CONVERGED)

# Values of `VARIANTS` in qp.py.
HARD, CONVEX, SOFT = 0, 1, 2


class Forest(NamedTuple):
    """Tight edges. Slot s is an edge (ends[2s], ends[2s + 1]); half-edges 2s and 2s + 1 are in their ends' lists."""

    head: Ints  # (N,) first half-edge of a sample
    after: Ints  # (2N,) next half-edge in the same list
    before: Ints  # (2N,)
    ends: Ints  # (2N,) the sample a half-edge is at
    flow: Floats  # (N,) dual of a slot's edge, never negative
    margin: Floats  # (N,)
    free: Ints  # (N + 1,) unused slots; the last entry counts them
    # Scratch of a walk from a root, by sample.
    up: Ints
    up_slot: Ints
    gain: Floats


@kernel
def _empty_forest(N: int) -> Forest:
    free = np.arange(N + 1)  # free[N] = N: all of them
    return Forest(
        np.full(N, NONE),
        np.empty(2 * N, np.int64),
        np.empty(2 * N, np.int64),
        np.empty(2 * N, np.int64),
        np.zeros(N),
        np.zeros(N),
        free,
        np.empty(N, np.int64),
        np.empty(N, np.int64),
        np.empty(N),
    )


@kernel
def _add(forest: Forest, i: int, j: int, flow: float, margin: float) -> None:
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
def _remove(forest: Forest, slot: int) -> None:
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
def _walk(forest: Forest, root: int, seen: Ints) -> int:
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
def _reroute(forest: Forest, i: int, j: int) -> tuple[int, float]:
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
def _spread(forest: Forest, seen: Ints, size: int, share: float) -> tuple[int, float]:
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
def _shift(forest: Forest, seen: Ints, size: int, pushed: float, a: Floats, by: float) -> None:
    a[seen[0]] += by
    for k in range(1, size):
        node = seen[k]
        a[node] += by
        forest.flow[forest.up_slot[node]] += pushed * forest.gain[node]


@kernel
def _tighten(forest: Forest, i: int, j: int, margin: float, a: Floats, seen_i: Ints, seen_j: Ints, limit: int) -> int:
    """Push flow along the violated edge (i, j) until it is tight: number of steps, 0 where a cycle forbids it."""
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
def _settle(forest: Forest, target: Floats, a: Floats, seen: Ints) -> Ints:
    """Recompute a (N,) from the blocks alone, free of the drift of many shifts; return block labels (N,)."""
    block = np.full(a.size, NONE)
    offset = forest.gain
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
    return block


@kernel
def project(target: Floats, order: Order, margin: Floats) -> tuple[int, Floats, Ints, int]:
    """Project target (N,) onto the order (E, 2) with margins (E,): (status, a (N,), block labels (N,), steps).

    INFEASIBLE if the edges contain a cycle whose margins sum to more than zero.
    """
    N, E = target.size, order.shape[0]
    a = target.copy()
    scale = 1.0
    for n in range(N):
        scale = max(scale, abs(target[n]))
    for e in range(E):
        scale = max(scale, margin[e])
    forest = _empty_forest(N)
    seen_i, seen_j = np.empty(N, np.int64), np.empty(N, np.int64)
    steps, limit = 0, 1000 + 100 * (N + E)
    e, quiet = 0, 0
    while quiet < E:
        i, j = order[e, 0], order[e, 1]
        if a[i] - a[j] + margin[e] <= 1e-13 * scale:
            quiet += 1
        else:
            quiet = 0
            taken = _tighten(forest, i, j, margin[e], a, seen_i, seen_j, limit - steps)
            if taken == 0:
                return INFEASIBLE, a, np.full(N, NONE), steps
            steps += taken
            if steps >= limit:
                return NOT_CONVERGED, a, np.full(N, NONE), steps
        e = e + 1 if e + 1 < E else 0
    return OPTIMAL, a, _settle(forest, target, a, seen_i), steps


@kernel
def _to_radius(target: Floats, order: Order, margin: Floats, largest: float) -> tuple[int, Floats, int]:
    """a(s) = P(s target) with |a(s)|^2 = N and s < largest: (status, a, steps).

    Where the blocks stay the same a(s) is affine in s, so each step solves the quadratic of the current piece; a
    bracket catches the steps that leave it. INFEASIBLE if even P(0), the least norm, is too long. NOT_CONVERGED if
    |a(s)| stays below the radius for every s: the target opposes the order, and no direction is left to grow in.
    """
    N = target.size
    status, a, block, steps = project(np.zeros(N), order, margin)
    excess = float(a @ a) - N
    if status != OPTIMAL or excess > 1e-12 * N:
        return max(status, INFEASIBLE), a, steps
    if excess > -1e-12 * N:  # the ball touches the order in this one point
        return OPTIMAL, a, steps
    low, high, s = 0.0, largest, np.sqrt(N / (target @ target))
    total, size = np.empty(N), np.empty(N)
    for _ in range(200):
        if not low < s < high:
            s = 0.5 * (low + high)
        status, a, block, taken = project(s * target, order, margin)
        steps += taken
        if status != OPTIMAL:
            return status, a, steps
        excess = float(a @ a) - N
        if abs(excess) <= 1e-13 * N or (high < np.inf and high - low <= 1e-15 * high):
            return OPTIMAL, a, steps
        if excess < 0.0:
            low = s
        else:
            high = s
        total[:], size[:] = 0.0, 0.0
        for n in range(N):
            total[block[n]] += target[n]
            size[block[n]] += 1.0
        slope, growth = 0.0, 0.0  # a . a'(s), |a'(s)|^2
        for n in range(N):
            mean = total[block[n]] / size[block[n]]
            slope += a[n] * mean
            growth += mean * mean
        under_root = slope * slope - growth * excess
        if under_root > 0.0:
            s -= excess / (slope + np.sqrt(under_root))
        else:
            s = np.inf
        s = min(s, 16.0 * low) if high == np.inf else s
        if s * np.abs(target).max() > 1e9 * N:
            break
    return NOT_CONVERGED, a, steps


@kernel
def _soft_gradient(a: Floats, target: Floats, order: Order, margin: Floats, penalty: float) -> tuple[float, Floats]:
    """Half of |a - t|^2 + penalty sum max(0, a_i - a_j + margin)^2, and its gradient (N,)."""
    gradient = a - target
    value = float(gradient @ gradient)
    for e in range(order.shape[0]):
        excess = a[order[e, 0]] - a[order[e, 1]] + margin[e]
        if excess > 0.0:
            value += penalty * excess * excess
            gradient[order[e, 0]] += penalty * excess
            gradient[order[e, 1]] -= penalty * excess
    return 0.5 * value, gradient


@kernel
def _soft_direction(violated: Order, gradient: Floats, penalty: float) -> Floats:
    """Solve (I + penalty L) d = -gradient by conjugate gradients, L the Laplacian of the violated edges."""
    d = np.zeros(gradient.size)
    residual = -gradient
    p = residual.copy()
    square = residual @ residual
    enough = 1e-30 * square
    for _ in range(10 * gradient.size):
        if square <= enough:
            break
        curved = p.copy()
        for e in range(violated.shape[0]):
            i, j = violated[e, 0], violated[e, 1]
            rise = penalty * (p[i] - p[j])
            curved[i] += rise
            curved[j] -= rise
        length = square / (p @ curved)
        d += length * p
        residual -= length * curved
        before, square = square, residual @ residual
        p = residual + (square / before) * p
    return d


@kernel
def soften(target: Floats, order: Order, margin: Floats, penalty: float) -> tuple[int, Floats, int]:
    """Minimise |a - t|^2 + penalty sum max(0, a_i - a_j + margin)^2: (status, a (N,), steps).

    Newton's method on a convex piecewise quadratic with backtracking: finite, whatever the edges say.
    """
    a = target.copy()
    E = order.shape[0]
    violated = np.empty((E, 2), np.int64)
    value, gradient = _soft_gradient(a, target, order, margin, penalty)
    enough = 1e-13 * max(1.0, np.abs(target).max()) * (1.0 + penalty)
    for step in range(200):
        if np.abs(gradient).max() <= enough:
            return OPTIMAL, a, step
        count = 0
        for e in range(E):
            if a[order[e, 0]] - a[order[e, 1]] + margin[e] > 0.0:
                violated[count, 0], violated[count, 1] = order[e, 0], order[e, 1]
                count += 1
        d = _soft_direction(violated[:count], gradient, penalty)
        fall = -(gradient @ d)
        length = 1.0
        while True:
            trial = a + length * d
            trial_value, trial_gradient = _soft_gradient(trial, target, order, margin, penalty)
            # Near the optimum the value no longer resolves the progress that the gradient still shows.
            if trial_value <= value - 1e-4 * length * fall + 1e-15 * abs(value) or length < 1e-10:
                break
            length *= 0.5
        a, value, gradient = trial, trial_value, trial_gradient
    return NOT_CONVERGED, a, 200


@kernel
def solve_one(variant: int, target: Floats, order: Order, margin: Floats, penalty: float) -> tuple[int, Floats, int]:
    """One program with centred target (N,): (status, a (N,), steps)."""
    if variant == SOFT:
        return soften(target, order, margin, penalty)
    if np.abs(target).max() == 0.0 and variant == HARD:
        # Every feasible point of the sphere is as close to 0 as any other: take the smallest point of the order.
        status, a, _, steps = project(target, order, margin)
        return (DEGENERATE if status == OPTIMAL else status), a, steps
    if variant == CONVEX:
        status, a, _, steps = project(target, order, margin)
        if status != OPTIMAL or a @ a <= target.size:
            return status, a, steps
    return _to_radius(target, order, margin, 1.0 if variant == CONVEX else np.inf)


@kernel
def solve_groups(
    variant: int,
    target_N: Floats,
    sample_offset: Ints,
    order_E2: Order,
    order_offset: Ints,
    margin_E: Floats,
    penalty: float,
) -> tuple[Floats, Ints, Ints]:
    """`solve_one` for every group, the soft program where it fails: advantage_N, status_G, steps_G."""
    G = sample_offset.size - 1
    advantage_N = np.empty(target_N.size)
    status_G, steps_G = np.empty(G, np.int64), np.empty(G, np.int64)
    for g in range(G):
        first, last = sample_offset[g], sample_offset[g + 1]
        edges = slice(order_offset[g], order_offset[g + 1])
        target, order, margin = target_N[first:last], order_E2[edges], margin_E[edges]
        status, a, steps = solve_one(variant, target, order, margin, penalty)
        if status >= INFEASIBLE and variant != SOFT:
            _, a, more = soften(target, order, margin, penalty)
            steps += more
        advantage_N[first:last], status_G[g], steps_G[g] = a, status, steps
    return advantage_N, status_G, steps_G
