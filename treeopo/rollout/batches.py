"""Graded groups into one training batch: staged advantages per rollout, and what the step reports about them."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from treeopo.advantage import AdvantageBatch, AdvantageSettings, staged_advantages_batch
from treeopo.records import FloatArray, Rollout, RolloutGroup, TrainBatch, TrainSequence

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
    )
    sequences = tuple(
        train_sequence(rollout, np.full(len(rollout.completion.token_ids), advantage, dtype=np.float32))
        for rollout, advantage in zip(rollouts, advantages.advantage, strict=True)
    )
    metrics = rollout_metrics(groups, rollouts) | _advantage_metrics(advantages)
    return TrainBatch(number, sequences, metrics)


def train_sequence(rollout: Rollout, advantages: FloatArray) -> TrainSequence:
    """`rollout` as the learner sees it; advantages (C,) are of its completion tokens."""
    return TrainSequence(
        token_ids=np.concatenate([rollout.prompt.token_ids, rollout.completion.token_ids]),
        prefix_length=len(rollout.prompt.token_ids),
        advantages=advantages,
        behaviour_logprobs=rollout.completion.logprobs,
        versions=rollout.completion.versions,
    )


def rollout_metrics(groups: Sequence[RolloutGroup], rollouts: Sequence[Rollout]) -> Metrics:
    """informative_share: groups whose rewards differ, the only ones that teach."""
    rewards = [{rollout.reward for rollout in group.rollouts} for group in groups]
    return {
        "rollout/reward": float(np.mean([rollout.reward for rollout in rollouts])),
        "rollout/informative_share": float(np.mean([len(distinct) > 1 for distinct in rewards])),
        "rollout/prefix_tokens_mean": float(np.mean([len(rollout.prompt.token_ids) for rollout in rollouts])),
        "rollout/tokens": float(sum(len(rollout.completion.token_ids) for rollout in rollouts)),
        "rollout/truncated_share": float(np.mean([rollout.completion.finish_reason.is_cut for rollout in rollouts])),
    }


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
