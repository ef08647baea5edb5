"""What is a tree, statistics on awkward trees, and counts that fade."""

from dataclasses import astuple

import numpy as np
import pytest

from treeopo.errors import ConfigError, InputError, RunError, TreeError
from treeopo.tree import RunningCounts, check_parents, subtree_statistics


@pytest.mark.parametrize(
    ("parent", "message"),
    [
        ([], "parent: expected one entry per node"),
        ([[-1, 0]], r"shape \(P,\), got shape \(1, 2\)"),
        ([-1.0, 0.0], "expected integers"),
        ([-1, 2, 0], r"parent\[1\] = 2 comes after its child"),
        ([-1, 2, 1], "nodes 1 -> 2 -> 1 form a cycle"),
        ([-1, 1], "nodes 1 -> 1 form a cycle"),
        ([-1, 0, 7], r"parent\[2\] = 7 is neither -1 nor one of the 3 nodes"),
        ([-1, -2], r"parent\[1\] = -2 is neither"),
    ],
)
def test_an_array_that_is_no_tree_is_named_by_its_first_bad_node(parent, message):
    with pytest.raises(TreeError, match=message) as caught:
        check_parents(parent)
    assert isinstance(caught.value, InputError)
    assert "\n" not in str(caught.value)


def test_counts_of_another_size_than_the_tree_are_refused():
    with pytest.raises(TreeError, match=r"success: expected shape \(2,\)"):
        subtree_statistics([-1, 0], np.ones(2), np.ones(3))


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float64])
def test_a_chain_of_100_000_nodes_is_counted_to_its_root(dtype):
    P = 100_000
    ones = np.ones(P, dtype=dtype)
    found = subtree_statistics(np.arange(-1, P - 1), ones, np.zeros(P, dtype=dtype))
    assert found.total.dtype == dtype
    assert np.array_equal(found.total, np.arange(P, 0, -1))
    assert not found.exists.any()


def test_the_counts_given_are_left_alone():
    total, success = np.array([0, 1, 2]), np.array([0, 1, 1])
    subtree_statistics([-1, 0, 1], total, success)
    assert total.tolist() == [0, 1, 2]
    assert success.tolist() == [0, 1, 1]


def test_a_subtree_without_samples_has_no_success_and_no_failure():
    found = subtree_statistics([-1, 0], np.array([1, 0]), np.array([0, 0]))
    assert found.exists.tolist() == [False, False]
    assert found.every.tolist() == [False, True]


def test_running_counts_fade_by_their_retention():
    counts = RunningCounts(3, retention=0.5)
    counts.record([1, 1, 2], [1, 0, 1])
    counts.advance()
    counts.record([1], [1])
    total, success = astuple(counts.outcomes(slice(0, 3)))
    assert total.tolist() == [0.0, 2.0, 0.5]
    assert success.tolist() == [0.0, 1.5, 0.5]


def test_running_counts_with_full_retention_never_forget():
    counts = RunningCounts(1)
    for _ in range(1000):
        counts.record([0], [1])
        counts.advance()
    assert counts.outcomes(slice(0, 1)).total[0] == 1000.0


def test_running_counts_survive_ten_thousand_steps_of_forgetting():
    counts, expected = RunningCounts(1, retention=0.9), 0.0
    for _ in range(10_000):
        counts.record([0], [1])
        expected = 0.9 * (expected + 1.0)
        counts.advance()
    assert counts.outcomes(slice(0, 1)).total[0] == pytest.approx(expected, rel=1e-12)


def test_a_restored_checkpoint_continues_bit_for_bit():
    rng = np.random.default_rng(0)
    straight = RunningCounts(50, retention=0.97)
    resumed = None
    for step in range(40):
        if step == 20:
            resumed = RunningCounts.from_state(straight.state())
        node, reward = rng.integers(0, 50, 32), rng.integers(0, 2, 32)
        for counts in filter(None, (straight, resumed)):
            counts.record(node, reward)
            counts.advance()
    assert resumed is not None
    for left, right in zip(astuple(straight.outcomes()), astuple(resumed.outcomes()), strict=True):
        assert np.array_equal(left, right)


def test_an_incomplete_checkpoint_names_what_it_lacks():
    state = RunningCounts(2).state()
    del state["weight"]
    with pytest.raises(RunError, match="lacks weight"):
        RunningCounts.from_state(state)


@pytest.mark.parametrize("retention", [0.0, 1.5, float("nan")])
def test_retention_outside_its_range_is_refused(retention):
    with pytest.raises(ConfigError, match="retention"):
        RunningCounts(1, retention)
