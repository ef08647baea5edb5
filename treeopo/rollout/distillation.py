"""Teacher log-probabilities for a batch, and the rewards of KL distillation made of them (Tree-OPO §4.3, Table 2)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import assert_never

import numpy as np

from treeopo.advantage.returns import leave_one_out, rewards_to_go
from treeopo.ports import ScoreTokens
from treeopo.records import FloatArray, RolloutGroup, TokenColumn, TrainBatch, TrainSequence, known_logprobs
from treeopo.rollout.batches import rollout_metrics, train_sequence
from treeopo.rollout.settings import TeacherReward


async def with_teacher(batch: TrainBatch, teacher: ScoreTokens) -> TrainBatch:
    """`batch` with teacher log-probabilities in the column TEACHER; sequences that have them are not scored again."""
    unknown = [index for index, row in enumerate(batch.sequences) if not _is_known(row)]
    rows = [batch.sequences[index] for index in unknown]
    scores = await teacher.score([row.token_ids for row in rows], [row.prefix_length for row in rows])
    sequences = list(batch.sequences)
    for index, score in zip(unknown, scores, strict=True):
        row = sequences[index]
        sequences[index] = replace(row, extras={**row.extras, TokenColumn.TEACHER: known_logprobs(score)})
    return replace(batch, sequences=tuple(sequences), metrics=batch.metrics | _unknown(scores))


async def distil(
    number: int, groups: Sequence[RolloutGroup], teacher: ScoreTokens, teacher_reward: TeacherReward
) -> TrainBatch:
    """Batch `number` whose advantages come from k_t = log pi_T - log pi alone; the task's reward is only reported.

    pi is the policy that sampled, as the engine reported it: at staleness 0 the one that learns, and otherwise
    the importance weights correct how often a token is sampled but not its k_t, which is 0 where either is unknown.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    token_ids = [np.concatenate([rollout.prompt.token_ids, rollout.completion.token_ids]) for rollout in rollouts]
    scores = await teacher.score(token_ids, [len(rollout.prompt.token_ids) for rollout in rollouts])
    rewards = [
        np.nan_to_num(known_logprobs(score) - rollout.completion.logprobs, nan=0.0)
        for score, rollout in zip(scores, rollouts, strict=True)
    ]
    advantages: list[FloatArray] = []
    first = 0
    for group in groups:
        advantages += _advantages(rewards[first : first + len(group.rollouts)], teacher_reward)
        first += len(group.rollouts)
    sequences = tuple(map(train_sequence, rollouts, advantages))
    metrics = rollout_metrics(groups, rollouts) | _teacher_metrics(rewards) | _unknown(scores)
    return TrainBatch(number, sequences, metrics)


def _advantages(rewards: Sequence[FloatArray], teacher_reward: TeacherReward) -> list[FloatArray]:
    """The advantages of one group's completions out of their per-token rewards, each (C,)."""
    end_B = np.cumsum([len(reward) for reward in rewards])
    match teacher_reward:
        case TeacherReward.PER_TOKEN:
            return list(rewards)
        case TeacherReward.TO_GO:
            advantage_C = rewards_to_go(np.concatenate(rewards).astype(np.float64), end_B)
        case TeacherReward.LEAVE_ONE_OUT:
            return_C = rewards_to_go(np.concatenate(rewards).astype(np.float64), end_B)
            advantage_C = return_C - leave_one_out(return_C, end_B)
        case _:
            assert_never(teacher_reward)
    return [part.astype(np.float32) for part in np.split(advantage_C, end_B[:-1])]


def _teacher_metrics(rewards: Sequence[FloatArray]) -> dict[str, float]:
    """teacher_kl: k1 estimate of KL(pi || pi_T), nats a token; teacher_return: mean sum of k over a completion."""
    tokens = sum(len(reward) for reward in rewards)
    total = float(sum(reward.sum() for reward in rewards))
    return {"rollout/teacher_kl": -total / max(1, tokens), "rollout/teacher_return": total / len(rewards)}


def _unknown(scores: Sequence[FloatArray]) -> dict[str, float]:
    """unknown_teacher_logprobs: of the tokens that the teacher was asked about."""
    return {"rollout/unknown_teacher_logprobs": float(sum(np.isnan(known_logprobs(each)).sum() for each in scores))}


def _is_known(row: TrainSequence) -> bool:
    """Whether it has a teacher log-probability for every token (NaN: unknown)."""
    return TokenColumn.TEACHER in row.extras and not np.isnan(row.extras[TokenColumn.TEACHER]).any()
