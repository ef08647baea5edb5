"""Compiled passes over a forest with one tree per group: baselines that need one, and per-group results.

Shapes: P nodes and N samples of all groups together; `node_N` indexes the forest; parents precede children.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from treeopo.records import REWARD_DUST
from treeopo.tree.compile import kernel

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

NONE = -1


@kernel
def nearest_shared(parent_P: Ints, total_P: Floats) -> Ints:
    """(P,) the nearest node at or above each whose subtree holds more than one sample; NONE where there is none."""
    shared_P = np.empty(parent_P.size, np.int64)
    for p in range(parent_P.size):
        if total_P[p] > 1.0:
            shared_P[p] = p
        else:
            shared_P[p] = shared_P[parent_P[p]] if parent_P[p] >= 0 else NONE
    return shared_P


@kernel
def leave_one_out(shared_P: Ints, total_P: Floats, success_P: Floats, node_N: Ints, reward_N: Floats) -> Floats:
    """(N,) success rate of the other samples in the nearest subtree that has any; 0 for a sample that is alone."""
    value_N = np.zeros(node_N.size)
    for n in range(node_N.size):
        p = shared_P[node_N[n]]
        if p != NONE:
            value_N[n] = (success_P[p] - reward_N[n]) / (total_P[p] - 1.0)
    return value_N


@kernel
def shrunken(
    parent_P: Ints,
    shared_P: Ints,
    total_P: Floats,
    success_P: Floats,
    node_N: Ints,
    reward_N: Floats,
    prior_mean: float,
    prior_strength: float,
) -> Floats:
    """(N,) posterior means along each sample's path to the root, its own reward left out.

    m(p) = (success + k m(parent)) / (total + k), read from the node up: what is left for the parent is the product of
    k / (total + k). Nodes without other samples leave everything and are skipped.
    """
    value_N = np.empty(node_N.size)
    for n in range(node_N.size):
        value, left = 0.0, 1.0
        p = shared_P[node_N[n]]
        while p != NONE and left > 1e-18:
            strength = total_P[p] - 1.0 + prior_strength
            value += left * (success_P[p] - reward_N[n]) / strength
            left *= prior_strength / strength
            p = shared_P[parent_P[p]] if parent_P[p] >= 0 else NONE
        value_N[n] = value + left * prior_mean
    return value_N


@kernel
def satisfied_share(
    advantage_N: Floats,
    sample_offset: Ints,
    order_E2: npt.NDArray[Any],
    order_offset: Ints,
    margin_E: Floats,
    tolerance: float,
) -> Floats:
    """(G,) share of a group's constraints that hold: a_i < a_j, or a_i + margin <= a_j + tolerance; nan without any."""
    G = sample_offset.size - 1
    share_G = np.full(G, np.nan)
    for g in range(G):
        first, last = order_offset[g], order_offset[g + 1]
        held = 0
        for e in range(first, last):
            low = advantage_N[sample_offset[g] + order_E2[e, 0]]
            high = advantage_N[sample_offset[g] + order_E2[e, 1]]
            if margin_E[e] > 0.0:
                held += low + margin_E[e] <= high + tolerance
            else:
                held += low < high
        if last > first:
            share_G[g] = held / (last - first)
    return share_G


@kernel
def centred(raw_N: Floats, sample_offset: Ints, standardize: bool) -> Floats:
    """(N,) each group minus its mean, over its population deviation if asked; a group that is constant up to
    `REWARD_DUST` gives exact zeros.
    """
    centred_N = np.zeros(raw_N.size)
    for g in range(sample_offset.size - 1):
        first, last = sample_offset[g], sample_offset[g + 1]
        total, lowest, highest = 0.0, raw_N[first], raw_N[first]
        for n in range(first, last):
            total += raw_N[n]
            lowest, highest = min(lowest, raw_N[n]), max(highest, raw_N[n])
        if highest - lowest <= REWARD_DUST:
            continue
        squares = 0.0
        for n in range(first, last):
            centred_N[n] = raw_N[n] - total / (last - first)
            squares += centred_N[n] ** 2
        if standardize:
            for n in range(first, last):
                centred_N[n] /= np.sqrt(squares / (last - first))
    return centred_N


@kernel
def variance(advantage_N: Floats, sample_offset: Ints) -> Floats:
    """(G,) population variance of each group's advantages."""
    variance_G = np.zeros(sample_offset.size - 1)
    for g in range(variance_G.size):
        first, last = sample_offset[g], sample_offset[g + 1]
        mean = 0.0
        for n in range(first, last):
            mean += advantage_N[n] / (last - first)
        for n in range(first, last):
            variance_G[g] += (advantage_N[n] - mean) ** 2 / (last - first)
    return variance_G


@kernel
def miss(a: Floats, order: npt.NDArray[Any], margin: Floats) -> tuple[float, float, float]:
    """How a (N,) meets its conditions: (|sum|, |a|^2 - N, worst order violation or 0)."""
    total, excess, worst = 0.0, -float(a.size), 0.0
    for n in range(a.size):
        total += a[n]
        excess += a[n] * a[n]
    for e in range(order.shape[0]):
        worst = max(worst, a[order[e, 0]] - a[order[e, 1]] + margin[e])
    return abs(total), excess, worst


@kernel
def miss_groups(
    advantage_N: Floats, sample_offset: Ints, order_E2: npt.NDArray[Any], order_offset: Ints, margin_E: Floats
) -> Floats:
    """(3, G) `miss` of every group."""
    miss_3G = np.empty((3, sample_offset.size - 1))
    for g in range(sample_offset.size - 1):
        a = advantage_N[sample_offset[g] : sample_offset[g + 1]]
        edges = slice(order_offset[g], order_offset[g + 1])
        miss_3G[0, g], miss_3G[1, g], miss_3G[2, g] = miss(a, order_E2[edges], margin_E[edges])
    return miss_3G
