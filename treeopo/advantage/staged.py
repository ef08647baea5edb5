"""The front door: from trees, start nodes and rewards to staged advantages (Alg. 1, SPEC §3 to §5)."""

from typing import Any

import numpy as np
import numpy.typing as npt

from treeopo.advantage.checks import Forest, check_batch, check_binary, check_order, check_outcomes, find_cycle
from treeopo.advantage.result import AdvantageBatch, Outcomes, StagedAdvantages
from treeopo.advantage.settings import (
    BINARY_METHODS,
    QP_METHODS,
    AdvantageSettings,
    Infeasible,
    Method,
    Scope,
)
from treeopo.errors import ConfigError, GroupError

# A constraint with a margin holds up to this; without one it must hold strictly (SPEC §4).
SATISFACTION_TOLERANCE = 1e-9


def staged_advantages(
    parent: npt.ArrayLike,
    node: npt.ArrayLike,
    reward: npt.ArrayLike,
    method: str = Method.EXPECTATION,
    *,
    order: npt.ArrayLike | None = None,
    rollouts: Outcomes | None = None,
    history: Outcomes | None = None,
    **settings: Any,
) -> StagedAdvantages:
    """Advantages of one group: samples that start at nodes of one tree and end in rewards.

    parent (P,)   the tree: -1 at the root, every parent before its children
    node (N,)     start node of each sample; reward (N,) 0 or 1
    method        one of `Method`; every other field of `AdvantageSettings` may be given by name
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

    if given_order is None:
        check_binary(forest, "the order of a tree")
    elif settings.baseline in BINARY_METHODS:
        check_binary(forest, settings.baseline)
    rollouts, history = _check_extras(forest, settings, rollouts, history)
    value_N = baseline(forest, settings, history, rollouts)
    raw_N = forest.reward - settings.alpha * value_N
    standardize = settings.baseline is Method.GRPO and settings.standardize
    advantage_N = kernels.centred(raw_N, forest.sample_offset, standardize)

    pair, triplet = settings.margins
    if given_order is None:
        order_E2, is_pair_E, order_offset, dropped_G = tree_order(
            forest.parent, forest.node, forest.reward == 0.0, forest.sample_offset
        )
        margin_E = np.where(is_pair_E, pair, triplet)
    else:
        order_E2, margin_E = given_order, np.full(len(given_order), pair)
        order_offset, dropped_G = np.array([0, len(order_E2)]), np.zeros(1, np.int64)

    solve = None
    if settings.method in QP_METHODS:
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


def _check_extras(
    forest: Forest, settings: AdvantageSettings, rollouts: Outcomes | None, history: Outcomes | None
) -> tuple[Outcomes | None, Outcomes | None]:
    """Prove that rollouts and history are there exactly when they are used, and sound."""
    if (rollouts is not None) != (settings.baseline is Method.MC):
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
    if settings.method is Method.QP_SOFT:
        return False
    cycle = find_cycle(order_E2, forest.node.size)
    if cycle is not None and settings.infeasible is Infeasible.RAISE:
        raise GroupError(
            f"order: samples {' < '.join(map(str, cycle))} form a cycle; drop one of them, or use infeasible='soft'"
        )
    return cycle is not None
