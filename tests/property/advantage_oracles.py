"""Slow, obvious versions of everything in `treeopo.tree` and `treeopo.advantage`, from the definitions alone:
docs/advantages.md and Tree-OPO (arXiv 2509.09284) §3.2 and §3.3.
"""

from fractions import Fraction

import numpy as np
from hypothesis import strategies as st
from scipy.optimize import nnls

MAX_NODES, MAX_SAMPLES = 14, 10

Group = tuple[list[int], list[int], list[int]]
"""(parent, node, reward) of one group."""

Program = tuple[np.ndarray, np.ndarray, np.ndarray]
"""(target, order, margin) of one program."""


@st.composite
def trees(draw, max_nodes=MAX_NODES):
    """A parent list: -1, then any earlier node."""
    P = draw(st.integers(1, max_nodes))
    return [-1, *(draw(st.integers(0, p - 1)) for p in range(1, P))]


@st.composite
def groups(draw, max_nodes=MAX_NODES, max_samples=MAX_SAMPLES):
    """(parent, node, reward) of one group."""
    parent = draw(trees(max_nodes))
    N = draw(st.integers(1, max_samples))
    node = draw(st.lists(st.integers(0, len(parent) - 1), min_size=N, max_size=N))
    reward = draw(st.lists(st.integers(0, 1), min_size=N, max_size=N))
    return parent, node, reward


@st.composite
def programs(draw, max_samples=9, max_edges=16, margins=(0.0, 1e-3, 1e-2, 0.3), acyclic=True):
    """(centred target, order, margins) of one program with real-valued targets."""
    N = draw(st.integers(1, max_samples))
    target = np.array(draw(st.lists(st.floats(-2, 2, width=16), min_size=N, max_size=N)), dtype=np.float64)
    rank = draw(st.permutations(range(N)))
    sample = st.integers(0, N - 1)
    pairs = (
        draw(st.lists(st.tuples(sample, sample).filter(lambda pair: pair[0] != pair[1]), max_size=max_edges))
        if N > 1
        else []
    )
    if acyclic:
        pairs = [sorted(pair, key=rank.index) for pair in pairs]
    order = np.array(pairs, dtype=np.int32).reshape(-1, 2)
    margin = np.array(
        draw(st.lists(st.sampled_from(margins), min_size=len(pairs), max_size=len(pairs))), dtype=np.float64
    )
    return target - target.mean(), order, margin


def ancestors(parent, p):
    """Proper ancestors of node p."""
    while parent[p] >= 0:
        p = parent[p]
        yield p


def is_prefix(parent, p, q):
    return p in ancestors(parent, q)


def is_sibling(parent, p, q):
    return p != q and parent[p] == parent[q] and parent[p] >= 0


def in_subtree(parent, root, p):
    return root == p or is_prefix(parent, root, p)


def expectation(parent, node, reward):
    """V_E of every sample's node, as a fraction."""
    values = []
    for p in node:
        below = [r for q, r in zip(node, reward, strict=True) if in_subtree(parent, p, q)]
        values.append(Fraction(sum(below), len(below)))
    return values


def optimistic(parent, node, reward):
    return [int(any(r and in_subtree(parent, p, q) for q, r in zip(node, reward, strict=True))) for p in node]


def pessimistic(parent, node, reward):
    return [int(not any(not r and in_subtree(parent, p, q) for q, r in zip(node, reward, strict=True))) for p in node]


def leave_one_out(parent, node, reward):
    values = []
    for k, p in enumerate(node):
        value = Fraction(0)
        for root in [p, *ancestors(parent, p)]:
            others = [r for j, r in enumerate(reward) if j != k and in_subtree(parent, root, node[j])]
            if others:
                value = Fraction(sum(others), len(others))
                break
        values.append(value)
    return values


def posterior(parent, node, reward, prior_mean, prior_strength, total=None, success=None):
    """From the root down: each node's estimate is shrunk toward its parent's; the sample itself is left out."""
    P = len(parent)
    total = np.zeros(P) if total is None else total
    success = np.zeros(P) if success is None else success
    values = []
    for k, p in enumerate(node):
        mean = prior_mean
        for root in [*reversed(list(ancestors(parent, p))), p]:
            others = [r for j, r in enumerate(reward) if j != k and in_subtree(parent, root, node[j])]
            below = [q for q in range(P) if in_subtree(parent, root, q)]
            n, s = len(others) + total[below].sum(), sum(others) + success[below].sum()
            mean = (s + prior_strength * mean) / (n + prior_strength)
        values.append(mean)
    return np.array(values)


def tree_order(parent, node, reward):
    """(pairs, triplets, dropped): docs/advantages.md, Order constraints, read aloud."""
    N = len(node)
    succeeded = {p for p, r in zip(node, reward, strict=True) if r}

    def has_successful_descendant(i):
        return any(is_prefix(parent, node[i], q) for q in succeeded)

    pairs, triplets, mutual = set(), set(), 0
    for i in range(N):
        for j in range(N):
            if is_prefix(parent, node[i], node[j]) and not reward[i] and reward[j]:
                pairs.add((i, j))
            if not is_sibling(parent, node[i], node[j]) or reward[i] or reward[j]:
                continue
            if node[i] in succeeded or node[j] in succeeded or not has_successful_descendant(i):
                continue
            if has_successful_descendant(j):
                mutual += 1
            else:
                triplets.add((i, j))
    return pairs, triplets, mutual // 2


def project(target, order, margin):
    """Least distance to {a : a_i + margin <= a_j} by Lawson and Hanson's LDP (one non-negative least squares)."""
    if len(order) == 0:
        return target.copy()
    # x = a - t: minimise |x| subject to G x >= h.
    G = np.zeros((len(order), len(target)))
    G[np.arange(len(order)), order[:, 1]] += 1.0
    G[np.arange(len(order)), order[:, 0]] -= 1.0
    h = margin - G @ target
    if (h <= 0).all():
        return target.copy()
    u, _ = nnls(np.vstack([G.T, h]), np.r_[np.zeros(len(target)), 1.0], maxiter=10_000)
    residual = np.vstack([G.T, h]) @ u - np.r_[np.zeros(len(target)), 1.0]
    return target - residual[:-1] / residual[-1]


def objective(variant, a, target, order, margin, penalty):
    """What qp-hard, qp-convex and qp-soft minimise."""
    distance = float(np.sum((a - target) ** 2))
    if variant != "qp-soft":
        return distance
    excess = np.maximum(0.0, a[order[:, 0]] - a[order[:, 1]] + margin)
    return distance + penalty * float(np.sum(excess**2))
