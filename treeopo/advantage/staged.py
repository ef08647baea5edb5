"""The public functions: trees, start nodes and rewards in, staged advantages out (Tree-OPO Alg. 1, §3.2 and §3.3)."""

from typing import Any

import numpy as np
import numpy.typing as npt

from treeopo.advantage.checks import (
    Forest,
    check_batch,
    check_binary,
    check_order,
    check_outcomes,
    check_unit,
    find_cycle,
)
from treeopo.advantage.result import AdvantageBatch, Ints, StagedAdvantages
from treeopo.advantage.settings import BINARY_METHODS, AdvantageMethod, AdvantageSettings, Infeasible, Scope
from treeopo.errors import ConfigError, GroupError
from treeopo.records import Outcomes

# A constraint with a margin holds up to this; without one it must hold strictly.
SATISFACTION_TOLERANCE = 1e-9


def staged_advantages(
    parent: npt.ArrayLike,
    node: npt.ArrayLike,
    reward: npt.ArrayLike,
    method: str = AdvantageMethod.EXPECTATION,
    *,
    order: npt.ArrayLike | None = None,
    rollouts: Outcomes | None = None,
    history: Outcomes | None = None,
    **settings: Any,
) -> StagedAdvantages:
    """Advantages of one group: samples that start at nodes of one tree and end in rewards.

    parent (P,)   the tree: -1 at the root, every parent before its children
    node (N,)     start node of each sample; reward (N,) 0 or 1. One between leaves its group without the tree's
                  constraints; optimistic, pessimistic, posterior and the programs qp-* refuse it
    method        one of `AdvantageMethod`; every other field of `AdvantageSettings` may be given by name
    order (E, 2)  samples (i, j) with a_i + margin_pair <= a_j, in place of the tree's constraints; rewards may then
                  be any finite numbers, except for optimistic, pessimistic and posterior
    rollouts      mc: outcomes of extra rollouts from each sample's prefix, (N,)
    history       scope `history`: outcomes of earlier samples by start node, (P,), as `RunningCounts` keeps them

    Raises TreeError, GroupError or ConfigError naming the argument and the index.
    """
    chosen = AdvantageSettings(**{"method": method, **settings})
    forest = check_batch(parent, [0, np.size(parent)], node, reward, [0, np.size(node)])
    given = None if order is None else check_order(order, forest.node.size)
    batch = _advantages(forest, chosen, given, rollouts, history)
    return StagedAdvantages(
        advantage=batch.advantage,
        value=batch.value,
        raw=batch.raw,
        order=batch.order,
        satisfaction=float(batch.satisfaction[0]),
        dropped=int(batch.dropped[0]),
        half_width=batch.half_width,
        solve=None if batch.solve is None else batch.solve.group(0),
    )


def staged_advantages_batch(
    parent: npt.ArrayLike,
    parent_offset: npt.ArrayLike,
    node: npt.ArrayLike,
    reward: npt.ArrayLike,
    sample_offset: npt.ArrayLike,
    settings: AdvantageSettings,
    *,
    rollouts: Outcomes | None = None,
    history: Outcomes | None = None,
) -> AdvantageBatch:
    """Advantages of G groups at once.

    parent (P,) and node (N,) are the groups' arrays one after the other with indices local to each group; group g has
    nodes parent_offset[g]:parent_offset[g + 1] and samples sample_offset[g]:sample_offset[g + 1], offsets (G + 1,).
    Everything else is as in `staged_advantages`, concatenated likewise. Errors name the group.
    """
    forest = check_batch(parent, parent_offset, node, reward, sample_offset)
    return _advantages(forest, settings, None, rollouts, history)


def _advantages(
    forest: Forest,
    settings: AdvantageSettings,
    given_order: npt.NDArray[np.int32] | None,
    rollouts: Outcomes | None,
    history: Outcomes | None,
) -> AdvantageBatch:
    # numba takes half a second to import, so only those who compute advantages pay for it.
    from treeopo.advantage import kernels, qp
    from treeopo.advantage.baselines import baseline, hoeffding_half_width
    from treeopo.advantage.order import tree_order

    if settings.needs_binary if given_order is None else settings.baseline in BINARY_METHODS:
        check_binary(forest, f"advantage.method {settings.method if given_order is None else settings.baseline}")
    if given_order is None:
        check_unit(forest)
    rollouts, history = _check_extras(forest, settings, rollouts, history)
    value_N = baseline(forest, settings, history, rollouts)
    raw_N = forest.reward - settings.alpha * value_N
    standardize = settings.baseline is AdvantageMethod.GRPO and settings.standardize
    advantage_N = kernels.centred(raw_N, forest.sample_offset, standardize)

    pair, triplet = settings.margins
    if given_order is None:
        order_E2, is_pair_E, order_offset, dropped_G = _binary_groups_only(
            forest, *tree_order(forest.parent, forest.node, forest.reward == 0.0, forest.sample_offset)
        )
        margin_E = np.where(is_pair_E, pair, triplet)
    else:
        order_E2, margin_E = given_order, np.full(len(given_order), pair)
        order_offset, dropped_G = np.array([0, len(order_E2)]), np.zeros(1, np.int64)

    solve = None
    if settings.program is not None:
        program = qp.Program(advantage_N, forest.sample_offset, order_E2, order_offset, margin_E)
        is_contradictory = given_order is not None and _is_contradictory(given_order, forest, settings)
        advantage_N, solve = qp.solve(program, settings, is_contradictory)
    return AdvantageBatch(
        advantage=advantage_N,
        value=value_N,
        raw=raw_N,
        order=order_E2,
        order_offset=order_offset,
        satisfaction=kernels.satisfied_share(
            advantage_N, forest.sample_offset, order_E2, order_offset, margin_E, SATISFACTION_TOLERANCE
        ),
        dropped=dropped_G,
        variance=kernels.variance(advantage_N, forest.sample_offset),
        half_width=None if rollouts is None else hoeffding_half_width(rollouts.total, settings.confidence),
        solve=solve,
    )


def _binary_groups_only(
    forest: Forest,
    order_E2: npt.NDArray[np.int32],
    is_pair_E: npt.NDArray[np.bool_],
    order_offset: Ints,
    dropped_G: Ints,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_], Ints, Ints]:
    """The tree's order without the groups that have a reward between 0 and 1: it orders failures and successes."""
    binary_N = (forest.reward == 0.0) | (forest.reward == 1.0)
    if binary_N.all():
        return order_E2, is_pair_E, order_offset, dropped_G
    binary_G = np.logical_and.reduceat(binary_N, forest.sample_offset[:-1])
    size_G = np.diff(order_offset)
    kept_E = np.repeat(binary_G, size_G)
    offset = np.concatenate([[0], np.cumsum(size_G * binary_G)])
    return order_E2[kept_E], is_pair_E[kept_E], offset, dropped_G * binary_G


def _check_extras(
    forest: Forest, settings: AdvantageSettings, rollouts: Outcomes | None, history: Outcomes | None
) -> tuple[Outcomes | None, Outcomes | None]:
    """Prove that rollouts and history are there exactly when they are used, and sound."""
    if (rollouts is not None) != (settings.baseline is AdvantageMethod.MC):
        raise ConfigError("rollouts: outcomes of extra rollouts (N,) belong to method='mc', which cannot do without")
    if (history is not None) != (settings.scope is Scope.HISTORY):
        raise ConfigError("history: outcomes by node (P,) belong to scope='history', which cannot do without")
    if rollouts is not None:
        rollouts = check_outcomes("rollouts", rollouts, forest.node.shape, least=1.0)
    if history is not None:
        history = check_outcomes("history", history, forest.parent.shape, least=0.0)
    return rollouts, history


def _is_contradictory(order_E2: npt.NDArray[np.int32], forest: Forest, settings: AdvantageSettings) -> bool:
    """Does the order given contain a cycle, so that assumption A1 fails? qp-soft can live with one."""
    if settings.method is AdvantageMethod.QP_SOFT:
        return False
    cycle = find_cycle(order_E2, forest.node.size)
    if cycle is not None and settings.infeasible is Infeasible.RAISE:
        raise GroupError(
            f"order: samples {' < '.join(map(str, cycle))} form a cycle; drop one of them, or use infeasible='soft'"
        )
    return cycle is not None
