"""Graded groups into one training batch: staged advantages per rollout, and what the step reports about them."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from treeopo.advantage import AdvantageBatch, AdvantageMethod, AdvantageSettings, Scope, staged_advantages_batch
from treeopo.records import FloatArray, Outcomes, Rollout, RolloutGroup, TrainBatch, TrainSequence

Metrics = dict[str, float]


async def assemble(number: int, groups: Sequence[RolloutGroup], settings: AdvantageSettings) -> TrainBatch:
    """Batch `number` from its groups, in order; its metrics are those that depend on the rollouts alone."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    advantages = staged_advantages_batch(
        parent=np.concatenate([group.drawn.parent for group in groups]),
        parent_offset=_offsets([len(group.drawn.parent) for group in groups]),
        node=np.array([rollout.prompt.node for rollout in rollouts]),
        reward=np.array([rollout.reward for rollout in rollouts]),
        sample_offset=_offsets([len(group.rollouts) for group in groups]),
        settings=settings,
        rollouts=_extra_rollouts(groups) if settings.baseline is AdvantageMethod.MC else None,
        history=_histories(groups) if settings.scope is Scope.HISTORY else None,
    )
    sequences = tuple(
        train_sequence(rollout, np.full(len(rollout.completion.token_ids), advantage, dtype=np.float32))
        for rollout, advantage in zip(rollouts, advantages.advantage, strict=True)
    )
    metrics = rollout_metrics(groups, rollouts) | _advantage_metrics(advantages)
    return TrainBatch(number, sequences, metrics, advantages.value)


def _extra_rollouts(groups: Sequence[RolloutGroup]) -> Outcomes:
    """What the extra rollouts from each sample's prefix (N,) came to; samples of one prefix share them."""
    rewards: list[npt.NDArray[np.float64]] = []
    for group in groups:
        of_node: dict[int, list[float]] = {}
        for rollout in group.extra:
            of_node.setdefault(rollout.prompt.node, []).append(rollout.reward)
        rewards += [np.array(of_node[rollout.prompt.node]) for rollout in group.rollouts]
    return Outcomes(np.array([len(each) for each in rewards], float), np.array([each.sum() for each in rewards]))


def _histories(groups: Sequence[RolloutGroup]) -> Outcomes:
    """The outcomes known of every node of the groups' trees, (P,)."""
    known = [group.drawn.history for group in groups if group.drawn.history is not None]
    assert len(known) == len(groups), "a group was drawn without what is known of its tree"
    return Outcomes(np.concatenate([each.total for each in known]), np.concatenate([each.success for each in known]))


def train_sequence(rollout: Rollout, advantages: FloatArray) -> TrainSequence:
    """`rollout` as the learner sees it; advantages (C,) are of its completion tokens."""
    return TrainSequence(
        token_ids=np.concatenate([rollout.prompt.token_ids, rollout.completion.token_ids]),
        prefix_length=len(rollout.prompt.token_ids),
        advantages=advantages,
        behaviour_logprobs=rollout.completion.logprobs,
        versions=rollout.completion.versions,
        question_length=rollout.prompt.question_tokens,
        prefix_is_solved=rollout.prompt.leads_to_success,
    )


def rollout_metrics(groups: Sequence[RolloutGroup], rollouts: Sequence[Rollout]) -> Metrics:
    """informative_share: groups whose rewards differ, the only ones that teach; the others are all right, all wrong, or
    alike in between. reward_root and reward_depth_K: of the rollouts that started there, K steps behind the question.
    """
    reward_N = np.array([rollout.reward for rollout in rollouts])
    depth_N = np.array([rollout.prompt.depth for rollout in rollouts])
    return {
        "rollout/reward": float(reward_N.mean()),
        **{_reward_at(depth): float(reward_N[depth_N == depth].mean()) for depth in np.unique(depth_N).tolist()},
        "rollout/root_share": float(np.mean(depth_N == 0)),
        "rollout/informative_share": float(np.mean([group.has_signal for group in groups])),
        "rollout/all_right_share": _share_of_groups(groups, 1.0),
        "rollout/all_wrong_share": _share_of_groups(groups, 0.0),
        "rollout/prefix_tokens_mean": float(np.mean([len(rollout.prompt.token_ids) for rollout in rollouts])),
        "rollout/tokens": float(sum(len(rollout.completion.token_ids) for rollout in rollouts)),
        "rollout/unknown_logprobs": float(sum(np.isnan(rollout.completion.logprobs).sum() for rollout in rollouts)),
        "rollout/truncated_share": float(np.mean([rollout.completion.finish_reason.is_cut for rollout in rollouts])),
    }


def _reward_at(depth: int) -> str:
    return f"rollout/reward_depth_{depth}" if depth else "rollout/reward_root"


def _share_of_groups(groups: Sequence[RolloutGroup], reward: float) -> float:
    """Those whose rollouts all have this reward."""
    return float(np.mean([all(rollout.reward == reward for rollout in group.rollouts) for group in groups]))


def _advantage_metrics(advantages: AdvantageBatch) -> Metrics:
    """Constraint satisfaction (Tree-OPO Table 1, Fig. 4a) over groups that have constraints; absent where none has."""
    metrics = {
        "advantage/variance": float(advantages.variance.mean()),
        "advantage/constraints": float(len(advantages.order)),
        "advantage/constraints_dropped": float(advantages.dropped.sum()),
    }
    constrained = advantages.satisfaction[~np.isnan(advantages.satisfaction)]
    if len(constrained):
        metrics["advantage/constraint_satisfaction"] = float(constrained.mean())
        metrics["advantage/constraint_satisfaction_std"] = float(constrained.std())
    if advantages.solve is not None:
        metrics["advantage/solver_fallbacks"] = float(advantages.solve.fell_back.sum())
    return metrics


def _offsets(lengths: Sequence[int]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)])
