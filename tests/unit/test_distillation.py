"""Teacher log-probabilities as rewards: those whose gradient is that of KL(pi || pi_T) over whole completions."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.test_policy_gradient_exact import (
    END,
    LONGEST,
    PROMPT,
    SETTINGS,
    completions,
    distance,
    exact,
    gradients,
    model,
    policy,
    token_logprobs,
)
from treeopo.learner.policy import LoraPolicy
from treeopo.records import (
    Completion,
    FinishReason,
    FloatArray,
    IntArray,
    Prompt,
    PromptGroup,
    Rollout,
    RolloutGroup,
    TokenColumn,
    TrainBatch,
)
from treeopo.rollout.distillation import distil, with_teacher
from treeopo.rollout.settings import TeacherReward

__all__ = ["model"]


class TableTeacher:
    """`ScoreTokens` that knows the completions of the tiny vocabulary by heart."""

    def __init__(self, teacher: LoraPolicy, longest: int) -> None:
        with torch.no_grad():
            scores = token_logprobs(teacher, longest)
        self._scores = {
            completion: score.numpy() for completion, score in zip(completions(longest), scores, strict=True)
        }
        self.asked = 0

    async def score(self, token_ids: Sequence[IntArray], prefix_lengths: Sequence[int]) -> list[FloatArray]:
        self.asked += len(token_ids)
        return [
            self._scores[tuple(map(int, ids[first:]))] for ids, first in zip(token_ids, prefix_lengths, strict=True)
        ]


def group(number: int, said: Sequence[tuple[int, ...]], logprobs: dict[tuple[int, ...], FloatArray]) -> RolloutGroup:
    prompt = Prompt(0, np.array(PROMPT, np.int32), 0, len(PROMPT), True)
    rollouts = []
    for completion in said:
        reason = FinishReason.STOP if completion[-1] == END else FinishReason.LENGTH
        versions = np.zeros(len(completion), np.int32)
        answer = Completion(np.array(completion, np.int32), logprobs[completion], versions, "", reason)
        rollouts.append(Rollout(prompt, answer, 0.0, 0, 0))
    return RolloutGroup(PromptGroup(number, 0, np.array([-1], np.int32), (prompt,) * len(said)), tuple(rollouts))


async def expected_gradient(model: Path, teacher_reward: TeacherReward, size: int, longest: int) -> list[torch.Tensor]:
    """E over groups of `size` completions of the policy of what the learner descends, by enumerating all groups."""
    with torch.no_grad():
        found = token_logprobs(policy(model), longest)
    own = {completion: row.numpy() for completion, row in zip(completions(longest), found, strict=True)}
    groups = [group(number, said, own) for number, said in enumerate(product(own, repeat=size))]
    batch = await distil(0, groups, TableTeacher(policy(model, seed=2, spread=0.5), longest), teacher_reward)
    chances = [np.exp(sum(own[said].sum() for said in row)) for row in product(own, repeat=size)]
    rows = tuple(
        replace(row, advantages=row.advantages.astype(np.float64) * chances[index // size] * len(groups))
        for index, row in enumerate(batch.sequences)
    )
    return gradients(policy(model), SETTINGS, TrainBatch(0, rows, {}))


@pytest.mark.parametrize(
    ("teacher_reward", "size", "longest"),
    [(TeacherReward.TO_GO, 1, LONGEST), (TeacherReward.TO_GO, 2, 2), (TeacherReward.LEAVE_ONE_OUT, 2, 2)],
)
async def test_the_expected_gradient_is_that_of_the_divergence_over_whole_completions(
    model: Path, teacher_reward: TeacherReward, size: int, longest: int
) -> None:
    with torch.no_grad():
        teacher = torch.stack([row.sum() for row in token_logprobs(policy(model, seed=2, spread=0.5), longest)])
    expected = exact(policy(model), lambda logprobs: (logprobs.exp() * (logprobs - teacher)).sum(), longest)
    assert distance(await expected_gradient(model, teacher_reward, size, longest), expected) < 1e-5


async def test_a_critic_gets_the_reward_of_each_token_and_the_run_the_divergence(model: Path) -> None:
    with torch.no_grad():
        own = {
            said: row.numpy() for said, row in zip(completions(), token_logprobs(policy(model), LONGEST), strict=True)
        }
    said = list(own)[:4]
    teacher = TableTeacher(policy(model, seed=2), LONGEST)
    batch = await distil(3, [group(0, said, own)], teacher, TeacherReward.PER_TOKEN)
    rewards = [teacher._scores[each] - own[each] for each in said]
    for row, reward in zip(batch.sequences, rewards, strict=True):
        np.testing.assert_allclose(row.advantages, reward)
    assert batch.metrics["rollout/teacher_kl"] == pytest.approx(-np.concatenate(rewards).mean())
    assert batch.metrics["rollout/teacher_return"] == pytest.approx(np.concatenate(rewards).sum() / 4)
    assert batch.number == 3


async def test_only_tokens_whose_teacher_log_probability_is_unknown_are_scored(model: Path) -> None:
    own = {said: row.detach().numpy() for said, row in zip(completions(), token_logprobs(policy(model)), strict=True)}
    said = list(own)[:3]
    teacher = TableTeacher(policy(model, seed=2), LONGEST)
    drawn = await distil(0, [group(0, said, own)], teacher, TeacherReward.PER_TOKEN)
    known = np.full(len(said[0]), -7.0, np.float32)
    unknown = np.full(len(said[1]), np.nan, np.float32)
    sequences = (
        replace(drawn.sequences[0], extras={TokenColumn.TEACHER: known}),
        replace(drawn.sequences[1], extras={TokenColumn.TEACHER: unknown}),
        drawn.sequences[2],
    )
    teacher.asked = 0
    scored = await with_teacher(replace(drawn, sequences=sequences), teacher)
    assert teacher.asked == 2
    columns = [row.extras[TokenColumn.TEACHER] for row in scored.sequences]
    for column, expected in zip(columns, [known, teacher._scores[said[1]], teacher._scores[said[2]]], strict=True):
        np.testing.assert_array_equal(column, expected)
