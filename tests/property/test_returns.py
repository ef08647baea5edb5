"""Rewards-to-go, the leave-one-out baseline and GAE against textbook loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from treeopo.advantage.returns import generalized_advantages, leave_one_out, rewards_to_go

REAL = st.floats(-10, 10)

COMPLETIONS = st.lists(st.lists(st.tuples(REAL, REAL), min_size=1, max_size=6), min_size=1, max_size=5)
SHARE = st.floats(0, 1)


def flat(completions: list[list[tuple[float, float]]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    reward = np.array([reward for row in completions for reward, _ in row])
    value = np.array([value for row in completions for _, value in row])
    return reward, value, np.cumsum([len(row) for row in completions])


@given(COMPLETIONS, SHARE, SHARE)
def test_gae_is_the_textbook_loop(completions: list[list[tuple[float, float]]], discount: float, decay: float) -> None:
    reward, value, end = flat(completions)
    expected = []
    for row in completions:
        values = [value for _, value in row] + [0.0]
        deltas = [row[t][0] + discount * values[t + 1] - values[t] for t in range(len(row))]
        expected += [
            sum((discount * decay) ** (s - t) * deltas[s] for s in range(t, len(row))) for t in range(len(row))
        ]
    np.testing.assert_allclose(generalized_advantages(reward, value, end, discount, decay), expected, atol=1e-9)


@given(COMPLETIONS, SHARE)
def test_at_lambda_one_the_targets_are_discounted_returns_and_at_zero_the_bootstrapped_reward(
    completions: list[list[tuple[float, float]]], discount: float
) -> None:
    reward, value, end = flat(completions)
    monte_carlo = [
        sum(discount ** (s - t) * row[s][0] for s in range(t, len(row))) for row in completions for t in range(len(row))
    ]
    np.testing.assert_allclose(generalized_advantages(reward, value, end, discount, 1) + value, monte_carlo, atol=1e-9)
    one_step = [
        row[t][0] + (discount * row[t + 1][1] if t + 1 < len(row) else 0.0)
        for row in completions
        for t in range(len(row))
    ]
    np.testing.assert_allclose(generalized_advantages(reward, value, end, discount, 0) + value, one_step, atol=1e-9)


@given(COMPLETIONS)
def test_rewards_to_go_end_with_the_completion(completions: list[list[tuple[float, float]]]) -> None:
    reward, _, end = flat(completions)
    expected = [sum(reward for reward, _ in row[t:]) for row in completions for t in range(len(row))]
    np.testing.assert_allclose(rewards_to_go(reward, end), expected, atol=1e-9)


@given(COMPLETIONS.filter(lambda rows: len(rows) > 1), REAL)
def test_a_baseline_is_the_mean_of_the_others_and_blind_to_its_own_completion(
    completions: list[list[tuple[float, float]]], other_return: float
) -> None:
    returns, _, end = flat(completions)
    baseline = leave_one_out(returns, end)
    at = 0
    for i, row in enumerate(completions):
        for t in range(len(row)):
            others = [own[t][0] if t < len(own) else 0.0 for j, own in enumerate(completions) if j != i]
            assert baseline[at] == pytest.approx(np.mean(others), abs=1e-9)
            at += 1
    first = len(completions[0])
    changed = np.concatenate([np.full(first, other_return), returns[first:]])
    np.testing.assert_allclose(leave_one_out(changed, end)[:first], baseline[:first], atol=1e-9)
