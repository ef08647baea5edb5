"""Everything a caller can get wrong is one line that names the argument and the index."""

from typing import Any

import numpy as np
import pytest

from treeopo.advantage import AdvantageSettings, Outcomes, staged_advantages, staged_advantages_batch
from treeopo.errors import ConfigError, GroupError, InputError, TreeError

GOOD: dict[str, Any] = {"parent": [-1, 0, 1], "node": [0, 1], "reward": [0, 1]}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"parent": [-1, 2, 0]}, TreeError, r"parent\[1\] = 2 comes after its child"),
        ({"parent": [-1, 2, 1]}, TreeError, "parent: nodes 1 -> 2 -> 1 form a cycle"),
        ({"parent": [-1, 0, 9]}, TreeError, r"parent\[2\] = 9 is neither"),
        ({"parent": [-1, 0, -1]}, TreeError, "parent: nodes 0 and 2 are both roots"),
        ({"parent": []}, GroupError, "parent: expected a non-empty array"),
        ({"parent": [[-1]]}, GroupError, "parent: expected a non-empty array of one dimension"),
        ({"parent": [-1.0, 0.5, 1.0]}, GroupError, "parent: expected integers, got float64"),
        ({"node": [0, 3]}, GroupError, r"node\[1\] = 3: expected a node of its tree, 0..2"),
        ({"node": [-1, 0]}, GroupError, r"node\[0\] = -1"),
        ({"node": [0.0, 1.0]}, GroupError, "node: expected integers"),
        ({"node": [], "reward": []}, GroupError, "node: expected a non-empty array"),
        ({"reward": [0, 1, 1]}, GroupError, r"reward: expected one per sample, shape \(2,\), got \(3,\)"),
        (
            {"reward": [0, 0.5], "method": "optimistic"},
            GroupError,
            r"reward\[1\] = 0.5: advantage.method optimistic needs rewards of 0 or 1",
        ),
        (
            {"reward": [0, 0.5], "method": "qp-soft"},
            GroupError,
            r"reward\[1\] = 0.5: advantage.method qp-soft needs rewards of 0 or 1",
        ),
        ({"reward": [np.nan, 1]}, GroupError, r"reward\[0\] = nan: expected a finite number"),
        ({"reward": ["yes", "no"]}, GroupError, "reward: expected numbers"),
        ({"method": "mean"}, ConfigError, "method = 'mean': expected one of grpo, flat"),
        ({"alpha": 1.5}, ConfigError, "alpha = 1.5"),
        ({"alpha": float("nan")}, ConfigError, "alpha = nan"),
        ({"margin_pair": -0.1}, ConfigError, "margin_pair = -0.1"),
        ({"margin_triplet": float("nan")}, ConfigError, "margin_triplet = nan"),
        ({"penalty": 0.0}, ConfigError, "penalty = 0.0"),
        ({"prior_mean": 1.0}, ConfigError, "prior_mean = 1.0"),
        ({"prior_strength": -1.0}, ConfigError, "prior_strength = -1.0"),
        ({"confidence": 0.0}, ConfigError, "confidence = 0.0"),
        ({"solver": "osqp"}, ConfigError, "solver = 'osqp': expected one of slsqp, exact"),
        ({"target": "expectation"}, ConfigError, "target = expectation: only qp-hard"),
        ({"method": "qp-soft", "target": "qp-hard"}, ConfigError, "not another program"),
        ({"method": "loo", "scope": "history"}, ConfigError, "loo keeps no history"),
        ({"standardize": False}, ConfigError, "the setting is grpo's"),
        ({"scope": "history"}, ConfigError, "history: outcomes by node"),
        ({"history": Outcomes(np.ones(3), np.ones(3))}, ConfigError, "history: outcomes by node"),
        ({"method": "mc"}, ConfigError, "rollouts: outcomes of extra rollouts"),
        ({"rollouts": Outcomes(np.ones(2), np.ones(2))}, ConfigError, "rollouts: outcomes of extra rollouts"),
        ({"order": [[0, 2]]}, GroupError, r"order\[0\] = \[0, 2\]: expected two different samples of 0..1"),
        ({"order": [[0, 1], [1, 1]]}, GroupError, r"order\[1\] = \[1, 1\]"),
        ({"order": [0, 1]}, GroupError, r"order: expected integers of shape \(E, 2\)"),
        (
            {"order": [[0, 1]], "method": "posterior", "reward": [0.0, 0.5]},
            GroupError,
            r"= 0.5: advantage.method posterior",
        ),
    ],
)
def test_bad_input_is_named(change, error, message):
    with pytest.raises(error, match=message) as caught:
        staged_advantages(**{**GOOD, **change})
    assert isinstance(caught.value, InputError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("total", "success", "message"),
    [
        ([0, 1], [0, 1], r"rollouts\[0\]: 0 of 0; expected 0 <= success <= total >= 1"),
        ([4, 4], [1, 5], r"rollouts\[1\]: 5 of 4"),
        ([4, 4], [-1, 0], r"rollouts\[0\]: -1 of 4"),
        ([4], [1], r"rollouts: expected total and success of shape \(2,\)"),
        ([4, np.inf], [1, 1], r"rollouts.total\[1\] = inf"),
    ],
)
def test_bad_rollouts_are_named(total, success, message):
    with pytest.raises(GroupError, match=message):
        staged_advantages(**GOOD, method="mc", rollouts=Outcomes(np.array(total), np.array(success)))


BATCH: dict[str, Any] = {
    "parent": [-1, 0, -1, 0, 0],
    "parent_offset": [0, 2, 5],
    "node": [0, 1, 0, 2],
    "reward": [0, 1, 0, 1],
    "sample_offset": [0, 2, 4],
}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"node": [0, 1, 0, 3]}, GroupError, r"node\[3\] = 3 \(group 1\): expected a node of its tree, 0..2"),
        ({"node": [0, 2, 0, 2]}, GroupError, r"node\[1\] = 2 \(group 0\)"),
        ({"reward": [0, 1, 2, 1]}, GroupError, r"reward\[2\] = 2.0 \(group 1\)"),
        ({"parent": [-1, 0, -1, 2, 0]}, TreeError, r"parent\[1\] = 2 comes after its child.*\(group 1\)"),
        ({"parent": [-1, 0, -1, 0, -1]}, TreeError, r"nodes 0 and 2 are both roots \(group 1\)"),
        ({"sample_offset": [0, 4]}, GroupError, "sample_offset: 1 groups, but parent_offset has 2"),
        ({"sample_offset": [0, 0, 4]}, GroupError, "sample_offset: group 0 has no samples"),
        ({"sample_offset": [0, 2, 3]}, GroupError, "sample_offset: expected 0, ..., 4"),
        ({"parent_offset": [0, 5, 5]}, GroupError, "parent_offset: group 1 has no nodes"),
        ({"parent_offset": [1, 2, 5]}, GroupError, "parent_offset: expected 0, ..., 5"),
    ],
)
def test_bad_batches_name_the_group(change, error, message):
    with pytest.raises(error, match=message):
        staged_advantages_batch(**{**BATCH, **change}, settings=AdvantageSettings())


def test_the_untouched_batch_is_fine():
    assert staged_advantages_batch(**BATCH, settings=AdvantageSettings()).advantage.shape == (4,)
