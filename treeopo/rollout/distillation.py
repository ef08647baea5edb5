"""The teacher's word on a batch: its log-probabilities as a column, and rewards out of them (SPEC §7)."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from treeopo.advantage.returns import leave_one_out, rewards_to_go
from treeopo.ports import ScoreTokens
from treeopo.records import Column, FloatArray, Group, TrainBatch, TrainSequence
from treeopo.rollout.batches import sample_metrics, train_sequence
from treeopo.rollout.settings import Credit


async def with_teacher(batch: TrainBatch, teacher: ScoreTokens) -> TrainBatch:
    """`batch` with the column TEACHER; rows that have it already without an unknown (NaN) are not scored again."""
    unknown = [index for index, row in enumerate(batch.sequences) if not _is_known(row)]
    rows = [batch.sequences[index] for index in unknown]
    scores = await teacher.score([row.token_ids for row in rows], [row.prefix_length for row in rows])
    sequences = list(batch.sequences)
    for index, score in zip(unknown, scores, strict=True):
        row = sequences[index]
        sequences[index] = replace(row, extras={**row.extras, Column.TEACHER: score})
    return replace(batch, sequences=tuple(sequences))


async def distil(number: int, groups: Sequence[Group], teacher: ScoreTokens, credit: Credit) -> TrainBatch:
    """Batch `number` whose advantages are the teacher's alone; the task's reward is only reported.

    pi in k_t is the policy that sampled, as the engine reported it: at staleness 0 the one that learns, and otherwise
    the importance weights correct the draw of a token but not its k_t.
    """
    samples = [sample for group in groups for sample in group.samples]
    token_ids = [np.concatenate([sample.draw.token_ids, sample.completion.token_ids]) for sample in samples]
    scores = await teacher.score(token_ids, [len(sample.draw.token_ids) for sample in samples])
    rewards = [score - sample.completion.logprobs for score, sample in zip(scores, samples, strict=True)]
    advantages: list[FloatArray] = []
    first = 0
    for group in groups:
        advantages += _credited(rewards[first : first + len(group.samples)], credit)
        first += len(group.samples)
    sequences = tuple(map(train_sequence, samples, advantages))
    return TrainBatch(number, sequences, sample_metrics(groups, samples) | _teacher_metrics(rewards))


def _credited(rewards: Sequence[FloatArray], credit: Credit) -> list[FloatArray]:
    """The advantages of one group's completions, each (C,)."""
    if credit is Credit.REWARD:
        return list(rewards)
    end_B = np.cumsum([len(reward) for reward in rewards])
    return_C = rewards_to_go(np.concatenate(rewards).astype(np.float64), end_B)
    if credit is Credit.LEAVE_ONE_OUT:
        return_C = return_C - leave_one_out(return_C, end_B)
    return [part.astype(np.float32) for part in np.split(return_C, end_B[:-1])]


def _teacher_metrics(rewards: Sequence[FloatArray]) -> dict[str, float]:
    """teacher_kl: k1 estimate of KL(pi || pi_T), nats a token; teacher_return: mean sum of k over a completion."""
    tokens = sum(len(reward) for reward in rewards)
    total = float(sum(reward.sum() for reward in rewards))
    return {"teacher_kl": -total / max(1, tokens), "teacher_return": total / len(rewards)}


def _is_known(row: TrainSequence) -> bool:
    return Column.TEACHER in row.extras and not np.isnan(row.extras[Column.TEACHER]).any()
