"""Rewards between 0 and 1: which advantages take them, what becomes of the tree's constraints, and honest intervals."""

import numpy as np
import pytest
from rich.console import Console
from treeopo_cli import render

from treeopo.advantage import AdvantageMethod, AdvantageSettings, staged_advantages, staged_advantages_batch
from treeopo.errors import GroupError
from treeopo.evaluation.accuracy import Scores
from treeopo.evaluation.comparison import compare_models
from treeopo.evaluation.estimators import best_at_k, majority_at_k, pass_at_k
from treeopo.evaluation.intervals import bootstrap_interval, mean_interval, wilson_interval

CHAIN = [-1, 0, 1]


def test_a_mean_is_a_mean_whatever_the_rewards() -> None:
    result = staged_advantages(CHAIN, [0, 1, 2], [0.0, 0.3, 0.9], "expectation", alpha=1.0)
    assert result.value == pytest.approx([0.4, 0.6, 0.9])
    assert result.raw == pytest.approx([-0.4, -0.3, 0.0])


@pytest.mark.parametrize("method", ["grpo", "flat", "trace", "expectation", "loo"])
def test_advantages_that_are_means_take_fractional_rewards(method: str) -> None:
    result = staged_advantages(CHAIN, [0, 1, 2], [0.0, 0.3, 0.9], method)
    assert np.isfinite(result.advantage).all()
    assert result.advantage.sum() == pytest.approx(0)
    assert not AdvantageSettings(AdvantageMethod(method)).needs_binary


@pytest.mark.parametrize("method", ["optimistic", "pessimistic", "posterior", "qp-hard", "qp-convex", "qp-soft"])
def test_advantages_that_count_successes_refuse_them_by_name(method: str) -> None:
    with pytest.raises(GroupError, match=rf"reward\[1\] = 0.3: advantage.method {method} needs rewards of 0 or 1"):
        staged_advantages(CHAIN, [0, 1, 2], [0.0, 0.3, 1.0], method)
    assert AdvantageSettings(AdvantageMethod(method)).needs_binary


def test_a_reward_outside_0_to_1_is_refused_whatever_the_method() -> None:
    with pytest.raises(GroupError, match=r"reward\[0\] = -0.5: expected a number in \[0, 1\]"):
        staged_advantages(CHAIN, [0, 1], [-0.5, 1.0], "flat")


def test_a_group_with_a_fractional_reward_has_no_constraints_and_leaves_the_others_theirs() -> None:
    def batch(rewards: list[float]) -> tuple[list[list[int]], list[int], list[float]]:
        result = staged_advantages_batch(CHAIN * 2, [0, 3, 6], [0, 1, 2] * 2, rewards, [0, 3, 6], AdvantageSettings())
        return result.order.tolist(), result.order_offset.tolist(), result.satisfaction.tolist()

    whole, offset, _ = batch([0, 0, 1, 0, 0, 1])
    assert offset == [0, 2, 4]
    order, offset, satisfaction = batch([0, 0, 0.9, 0, 0, 1])
    assert order == whole[2:]
    assert offset == [0, 0, 2]
    assert np.isnan(satisfaction[0])
    assert satisfaction[1] == 1.0


def fractional(greedy: list[float], sampled: list[list[float]], answers: list[list[str]]) -> Scores:
    return Scores(
        tuple(map(str, range(len(greedy)))), np.array(greedy), np.array(sampled), tuple(map(tuple, answers)), 0
    )


def test_fractional_scores_have_bootstrap_intervals_and_no_mcnemar_test() -> None:
    one = fractional([0.3, 0.7, 1.0, 0.0], [[]] * 4, [[]] * 4)
    other = fractional([0.2, 0.7, 0.5, 0.0], [[]] * 4, [[]] * 4)
    result = compare_models("set", ["one", "other"], [one, other])
    assert not result.is_binary
    assert result.scores[0].greedy == bootstrap_interval(one.greedy)
    assert result.difference is not None
    assert result.difference.greedy == bootstrap_interval(one.greedy - other.greedy)
    assert result.difference.p_value is None


def test_fractional_scores_are_shown_as_means_without_a_p_value(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Console(record=True, width=100)
    monkeypatch.setattr(render, "console", shown)
    scores = fractional([0.3, 1.0], [[0.3, 1.0], [0.0, 0.6]], [["1", "2"], ["", "3"]])
    render.evaluation(compare_models("set", ["one", "other"], [scores, scores]))
    text = shown.export_text()
    assert "greedy mean reward" in text
    assert "best of 2" in text
    assert "pass@" not in text
    assert "McNemar p = -" in text


def test_one_fractional_model_has_both_measured_alike() -> None:
    binary, other = fractional([1.0, 0.0], [[]] * 2, [[]] * 2), fractional([0.5, 0.0], [[]] * 2, [[]] * 2)
    result = compare_models("set", ["binary", "other"], [binary, other])
    assert result.scores[0].greedy == bootstrap_interval(binary.greedy)


def test_best_of_k_is_pass_at_k_where_rewards_are_0_or_1() -> None:
    rewards = np.array([[0, 1, 0, 0, 1, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]], float)
    for k in (1, 2, 4, 6):
        assert best_at_k(rewards, k) == pytest.approx(pass_at_k(rewards.sum(axis=1).astype(np.int64), 6, k))


def test_best_of_k_is_the_mean_of_the_highest_over_all_choices() -> None:
    rewards = np.array([[0.2, 0.9, 0.5]])
    assert best_at_k(rewards, 1) == pytest.approx([np.mean(rewards)])
    assert best_at_k(rewards, 2) == pytest.approx([(0.9 + 0.5 + 0.9) / 3])
    assert best_at_k(rewards, 3) == pytest.approx([0.9])


def test_the_reward_of_a_majority_is_the_mean_over_the_samples_that_gave_it() -> None:
    assert majority_at_k([["a", "b", "a"]], np.array([[0.2, 1.0, 0.6]]), 3) == pytest.approx([0.4])


def test_a_mean_of_zeros_and_ones_keeps_wilsons_interval() -> None:
    assert mean_interval(np.array([1.0, 0.0, 1.0])) == wilson_interval(np.array([1.0, 0.0, 1.0]))
    assert mean_interval(np.array([1.0, 0.5])) == bootstrap_interval(np.array([1.0, 0.5]))
