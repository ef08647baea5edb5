"""Graded groups into one training batch: staged advantages per sample, and what the step reports about them."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from treeopo.advantage import AdvantageBatch, AdvantageSettings, staged_advantages_batch
from treeopo.records import FloatArray, Group, Sample, TrainBatch, TrainSequence

Metrics = dict[str, float]


async def assemble(number: int, groups: Sequence[Group], settings: AdvantageSettings) -> TrainBatch:
    """Batch `number` from its groups, in order; its metrics are those of SPEC §8 that depend on samples alone."""
    samples = [sample for group in groups for sample in group.samples]
    advantages = staged_advantages_batch(
        parent=np.concatenate([group.drawn.parent for group in groups]),
        parent_offset=_offsets([len(group.drawn.parent) for group in groups]),
        node=np.array([sample.draw.node for sample in samples]),
        reward=np.array([sample.reward for sample in samples]),
        sample_offset=_offsets([len(group.samples) for group in groups]),
        settings=settings,
    )
    sequences = tuple(
        train_sequence(sample, np.full(len(sample.completion.token_ids), advantage, dtype=np.float32))
        for sample, advantage in zip(samples, advantages.advantage, strict=True)
    )
    metrics = sample_metrics(groups, samples) | _advantage_metrics(advantages)
    return TrainBatch(number, sequences, metrics)


def train_sequence(sample: Sample, advantages: FloatArray) -> TrainSequence:
    """`sample` as the learner sees it; advantages (C,) are of its completion tokens."""
    return TrainSequence(
        token_ids=np.concatenate([sample.draw.token_ids, sample.completion.token_ids]),
        prefix_length=len(sample.draw.token_ids),
        advantages=advantages,
        behaviour_logprobs=sample.completion.logprobs,
        versions=sample.completion.versions,
    )


def sample_metrics(groups: Sequence[Group], samples: Sequence[Sample]) -> Metrics:
    """informative_share: groups whose rewards differ, the only ones that teach."""
    rewards = [{sample.reward for sample in group.samples} for group in groups]
    return {
        "reward": float(np.mean([sample.reward for sample in samples])),
        "informative_share": float(np.mean([len(distinct) > 1 for distinct in rewards])),
        "prefix_tokens_mean": float(np.mean([len(sample.draw.token_ids) for sample in samples])),
        "rollout_tokens": float(sum(len(sample.completion.token_ids) for sample in samples)),
        "truncated_share": float(np.mean([sample.completion.finish_reason == "length" for sample in samples])),
    }


def _advantage_metrics(advantages: AdvantageBatch) -> Metrics:
    """Constraint satisfaction counts groups that have constraints (SPEC §4); the key is absent where none has."""
    metrics = {
        "advantage_variance": float(advantages.variance.mean()),
        "constraints": float(len(advantages.order)),
        "dropped_constraints": float(advantages.dropped.sum()),
    }
    constrained = advantages.satisfaction[~np.isnan(advantages.satisfaction)]
    if len(constrained):
        metrics["constraint_satisfaction"] = float(constrained.mean())
        metrics["constraint_satisfaction_std"] = float(constrained.std())
    if advantages.solve is not None:
        metrics["solver_fallbacks"] = float(advantages.solve.fell_back.sum())
    return metrics


def _offsets(lengths: Sequence[int]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)])
