"""Validation of a batch of groups: errors of one line that name the argument, the index and the group."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from treeopo.advantage.result import Floats, Ints
from treeopo.errors import GroupError, TreeError
from treeopo.records import Outcomes
from treeopo.tree.topology import check_parents


@dataclass(frozen=True, slots=True)
class Forest:
    """The samples of G groups. parent (P,) and node (N,) index all trees together; the offsets are (G + 1,)."""

    parent: Ints
    parent_offset: Ints
    node: Ints
    reward: Floats
    sample_offset: Ints


def check_batch(
    parent: npt.ArrayLike,
    parent_offset: npt.ArrayLike,
    node: npt.ArrayLike,
    reward: npt.ArrayLike,
    sample_offset: npt.ArrayLike,
) -> Forest:
    """Join groups with local indices into one forest. Raises TreeError or GroupError naming argument, index, group."""
    node_N, reward_N = _integers("node", node), _numbers("reward", reward)
    if reward_N.shape != node_N.shape:
        raise GroupError(f"reward: expected one per sample, shape {node_N.shape}, got {reward_N.shape}")
    sample_offset_G = _offsets("sample_offset", sample_offset, node_N.size, "samples")
    local_parent_P = _integers("parent", parent)
    parent_offset_G = _offsets("parent_offset", parent_offset, local_parent_P.size, "nodes")
    G = parent_offset_G.size - 1
    if sample_offset_G.size != parent_offset_G.size:
        raise GroupError(f"sample_offset: {sample_offset_G.size - 1} groups, but parent_offset has {G}")
    P_G, N_G = np.diff(parent_offset_G), np.diff(sample_offset_G)
    start_P, start_N = np.repeat(parent_offset_G[:-1], P_G), np.repeat(parent_offset_G[:-1], N_G)
    position_P = np.arange(local_parent_P.size) - start_P

    wrong_P = (local_parent_P >= position_P) | (local_parent_P < -1) | ((local_parent_P < 0) & (position_P > 0))
    if wrong_P.any():
        raise _tree_error(local_parent_P, parent_offset_G, int(np.argmax(wrong_P)))
    wrong_N = (node_N < 0) | (node_N >= np.repeat(P_G, N_G))
    if wrong_N.any():
        n = int(np.argmax(wrong_N))
        g, where = locate(sample_offset_G, n)
        raise GroupError(f"node[{n}] = {node_N[n]}{where}: expected a node of its tree, 0..{P_G[g] - 1}")
    joined_P = np.where(local_parent_P < 0, -1, local_parent_P + start_P)
    return Forest(joined_P, parent_offset_G, node_N + start_N, reward_N, sample_offset_G)


def check_binary(forest: Forest, why: str) -> None:
    """Prove that every reward is 0 or 1. Raises GroupError naming the first that is not, and why it must."""
    _check_rewards(forest, (forest.reward == 0.0) | (forest.reward == 1.0), f"{why} needs rewards of 0 or 1")


def check_unit(forest: Forest) -> None:
    """Prove that every reward is in [0, 1]. Raises GroupError naming the first that is not."""
    _check_rewards(forest, (forest.reward >= 0.0) & (forest.reward <= 1.0), "expected a number in [0, 1]")


def _check_rewards(forest: Forest, right_N: npt.NDArray[np.bool_], complaint: str) -> None:
    if not right_N.all():
        n = int(np.argmin(right_N))
        where = locate(forest.sample_offset, n)[1]
        raise GroupError(f"reward[{n}] = {forest.reward[n]}{where}: {complaint}")


def check_outcomes(name: str, outcomes: Outcomes, shape: tuple[int], least: float) -> Outcomes:
    """Return outcomes as float64 arrays of `shape` with total >= least and 0 <= success <= total, else GroupError."""
    total, success = _numbers(f"{name}.total", outcomes.total), _numbers(f"{name}.success", outcomes.success)
    if total.shape != shape or success.shape != shape:
        raise GroupError(f"{name}: expected total and success of shape {shape}, got {total.shape} and {success.shape}")
    # Faded counts are products of floats; a success may exceed its total by rounding.
    wrong = (total < least) | (success < 0) | (success > total * (1.0 + 1e-9))
    if wrong.any():
        k = int(np.argmax(wrong))
        raise GroupError(f"{name}[{k}]: {success[k]:g} of {total[k]:g}; expected 0 <= success <= total >= {least:g}")
    return Outcomes(total, success)


def check_order(order: npt.ArrayLike, N: int) -> npt.NDArray[np.int32]:
    """Return order (E, 2) of different samples among N. Raises GroupError naming the first row that is not."""
    order_E2 = np.asarray(order)
    if order_E2.size == 0:
        return np.empty((0, 2), np.int32)
    if order_E2.ndim != 2 or order_E2.shape[1] != 2 or order_E2.dtype.kind not in "iu":
        raise GroupError(f"order: expected integers of shape (E, 2), got {order_E2.dtype} of shape {order_E2.shape}")
    wrong_E = ((order_E2 < 0) | (order_E2 >= N)).any(axis=1) | (order_E2[:, 0] == order_E2[:, 1])
    if wrong_E.any():
        e = int(np.argmax(wrong_E))
        raise GroupError(f"order[{e}] = {order_E2[e].tolist()}: expected two different samples of 0..{N - 1}")
    return np.ascontiguousarray(order_E2, dtype=np.int32)


def find_cycle(order_E2: npt.NDArray[np.int32], N: int) -> list[int] | None:
    """Samples i, j, ..., i that the order wants to rise without end, or None if it is acyclic. O(N + E)."""
    lower: list[list[int]] = [[] for _ in range(N)]
    n_upper = [0] * N
    for i, j in order_E2.tolist():
        lower[j].append(i)
        n_upper[i] += 1
    done = [n for n in range(N) if n_upper[n] == 0]
    for n in done:
        for i in lower[n]:
            n_upper[i] -= 1
            if n_upper[i] == 0:
                done.append(i)
    if len(done) == N:
        return None
    # Every sample left lies below another one that is left, so a walk upwards must come back to itself.
    upper = {i: j for i, j in order_E2.tolist() if n_upper[i] > 0 and n_upper[j] > 0}
    here, seen_at = next(iter(upper)), dict[int, int]()
    while here not in seen_at:
        seen_at[here] = len(seen_at)
        here = upper[here]
    return [*list(seen_at)[seen_at[here] :], here]


def locate(offset_G: Ints, index: int) -> tuple[int, str]:
    """(group of a concatenated index, " (group g)" where there are several)."""
    g = int(np.searchsorted(offset_G, index, side="right")) - 1
    return g, f" (group {g})" if offset_G.size > 2 else ""


def _tree_error(local_parent_P: Ints, parent_offset_G: Ints, p: int) -> TreeError:
    g, where = locate(parent_offset_G, p)
    tree = local_parent_P[parent_offset_G[g] : parent_offset_G[g + 1]]
    try:
        check_parents(tree)
    except TreeError as error:
        return TreeError(f"{error}{where}")
    second = p - int(parent_offset_G[g])
    return TreeError(f"parent: nodes 0 and {second} are both roots{where}; a group is drawn from one tree")


def _integers(name: str, values: npt.ArrayLike) -> Ints:
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0:
        raise GroupError(f"{name}: expected a non-empty array of one dimension, got shape {array.shape}")
    if array.dtype.kind not in "iu":
        raise GroupError(f"{name}: expected integers, got {array.dtype}")
    return np.ascontiguousarray(array, dtype=np.int64)


def _numbers(name: str, values: npt.ArrayLike) -> Floats:
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise GroupError(f"{name}: expected numbers, got {array.dtype}")
    numbers = np.ascontiguousarray(array, dtype=np.float64)
    if not np.isfinite(numbers).all():
        k = int(np.argmax(~np.isfinite(numbers)))
        raise GroupError(f"{name}[{k}] = {numbers.flat[k]}: expected a finite number")
    return numbers


def _offsets(name: str, values: npt.ArrayLike, total: int, what: str) -> Ints:
    offset_G = _integers(name, values)
    if offset_G.size < 2 or offset_G[0] != 0 or offset_G[-1] != total:
        raise GroupError(f"{name}: expected 0, ..., {total} (the number of {what}), got {offset_G.tolist()[:4]} ...")
    empty_G = np.diff(offset_G) <= 0
    if empty_G.any():
        raise GroupError(f"{name}: group {int(np.argmax(empty_G))} has no {what}")
    return offset_G
