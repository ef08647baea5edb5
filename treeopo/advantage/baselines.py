"""Baselines V of a prefix (Tree-OPO §3.3), one per sample, for a forest with one tree per group."""

from typing import assert_never

import numpy as np
import numpy.typing as npt

from treeopo.advantage import kernels
from treeopo.advantage.checks import Forest, locate
from treeopo.advantage.result import Floats
from treeopo.advantage.settings import AdvantageMethod, AdvantageSettings, Scope
from treeopo.errors import GroupError
from treeopo.records import Outcomes
from treeopo.tree import SubtreeStatistics, subtree_statistics


def baseline(
    forest: Forest, settings: AdvantageSettings, history: Outcomes | None, rollouts: Outcomes | None
) -> Floats:
    """Value (N,) of every sample's start node under `settings.baseline`.

    grpo, flat      the group's mean reward
    expectation     success / total of the subtree (V_E); trace: the same, counting the group's chain alone
    optimistic      1 if the subtree has a success (V_O)
    pessimistic     1 if the subtree has no failure (V_P)
    mc              success / total of extra rollouts from the node itself (Tree-OPO §3.4, App. A.9)
    loo             V_E without the sample itself; where nothing is left, the nearest ancestor's; 0 for a lone sample
    posterior       Beta-binomial: m(p) = (success + k m(parent)) / (total + k) with k = prior_strength and
                    m(above the root) = prior_mean, over the group and the run's history without the sample itself.
                    Each node's prior is its parent's estimate, worth k samples; a child's data also counts in its
                    parent, so the shrinkage is empirical Bayes, not a joint posterior.

    `history` (P,) holds the earlier samples that started at each node, `rollouts` (N,) those of mc. loo, posterior and
    mc do not see the sample's own reward, so Lemma 3.1 applies to r - alpha V; the paper's V_E, V_O and V_P see it.
    """
    node_N = forest.node
    match settings.baseline:
        case AdvantageMethod.GRPO | AdvantageMethod.FLAT:
            return _group_means(forest)
        case AdvantageMethod.MC:
            assert rollouts is not None
            return rollouts.success / rollouts.total
        case AdvantageMethod.EXPECTATION | AdvantageMethod.TRACE:
            subtree = _subtrees(forest, settings, history)
            value_N: Floats = subtree.success[node_N] / subtree.total[node_N]
            return value_N
        case AdvantageMethod.OPTIMISTIC:
            return _subtrees(forest, settings, history).exists[node_N].astype(np.float64)
        case AdvantageMethod.PESSIMISTIC:
            return _subtrees(forest, settings, history).every[node_N].astype(np.float64)
        case AdvantageMethod.LOO:
            subtree = _subtrees(forest, settings, history)
            shared_P = kernels.nearest_shared(forest.parent, subtree.total)
            return kernels.leave_one_out(shared_P, subtree.total, subtree.success, node_N, forest.reward)
        case AdvantageMethod.POSTERIOR:
            subtree = _subtrees(forest, settings, history)
            shared_P = kernels.nearest_shared(forest.parent, subtree.total)
            counts = (subtree.total, subtree.success, node_N, forest.reward)
            return kernels.shrunken(forest.parent, shared_P, *counts, settings.prior_mean, settings.prior_strength)
        case AdvantageMethod.QP_HARD | AdvantageMethod.QP_CONVEX | AdvantageMethod.QP_SOFT as program:
            raise AssertionError(f"{program} is solved on top of a baseline and has none of its own")
        case _ as unknown:
            assert_never(unknown)


def hoeffding_half_width(total: npt.ArrayLike, confidence: float) -> Floats:
    """Half-width (N,) of the interval that holds V with probability `confidence` after `total` rollouts (App. A.9)."""
    half_width: Floats = np.sqrt(np.log(2.0 / (1.0 - confidence)) / (2.0 * np.asarray(total, dtype=np.float64)))
    return half_width


def _group_means(forest: Forest) -> Floats:
    size_G = np.diff(forest.sample_offset)
    return np.repeat(np.add.reduceat(forest.reward, forest.sample_offset[:-1]) / size_G, size_G)


def _subtrees(forest: Forest, settings: AdvantageSettings, history: Outcomes | None) -> SubtreeStatistics:
    """What the samples in scope did at every node and below."""
    P = forest.parent.size
    own = Outcomes(
        np.bincount(forest.node, None, P).astype(np.float64),
        np.bincount(forest.node, forest.reward, P).astype(np.float64),
    )
    if settings.baseline is AdvantageMethod.TRACE:
        _check_chains(forest, own)
    counts = _in_scope(forest, settings, own, history)
    return subtree_statistics(forest.parent, counts.total, counts.success)


def _in_scope(forest: Forest, settings: AdvantageSettings, own: Outcomes, history: Outcomes | None) -> Outcomes:
    match settings.scope:
        case Scope.GROUP:
            return own
        case Scope.HISTORY:
            assert history is not None
            total_P, success_P = history.total, history.success
            if settings.baseline is AdvantageMethod.TRACE:
                on_chain_P = subtree_statistics(forest.parent, own.total, own.success).total > 0
                total_P, success_P = total_P * on_chain_P, success_P * on_chain_P
            return Outcomes(own.total + total_P, own.success + success_P)
        case _ as unknown:
            assert_never(unknown)


def _check_chains(forest: Forest, own: Outcomes) -> None:
    """Prove that every group's start nodes lie on one path from the root (structure `trace`, Tree-OPO §4.1)."""
    reached_P = subtree_statistics(forest.parent, own.total, own.success).total > 0
    reached = np.flatnonzero(reached_P & (forest.parent >= 0))
    parents, count = np.unique(forest.parent[reached], return_counts=True)
    if (count > 1).any():
        fork = int(parents[np.argmax(count > 1)])
        g, where = locate(forest.parent_offset, fork)
        raise GroupError(
            f"trace: samples part below node {fork - forest.parent_offset[g]}{where}; "
            "a group must lie on the chain of one trace, or use method='expectation'"
        )
