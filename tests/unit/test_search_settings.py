"""Search settings refuse what cannot be searched, in one line that names the setting."""

import pytest

from treeopo.errors import ConfigError
from treeopo.search.settings import SearchSettings


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("rollouts", 0),
        ("depth", 0),
        ("branching", -1),
        ("max_step_tokens", 0),
        ("max_solution_tokens", 0),
        ("exploration", -0.1),
        ("exploration", float("nan")),
        ("exploration_schedule", "cosine"),
        ("temperature", 0.0),
        ("separator", ""),
        ("merge", "meaning"),
        ("reward", "silver"),
        ("leaves", 0),
    ],
)
def test_an_impossible_setting_is_refused_by_name(setting: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"^{setting} is ") as caught:
        SearchSettings(**{setting: value})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_constant_schedule_keeps_the_exploration() -> None:
    assert {SearchSettings(exploration=1.5).exploration_at(rollout) for rollout in range(16)} == {1.5}


@pytest.mark.parametrize("schedule", ["linear", "exponential"])
def test_a_decaying_schedule_falls_from_the_constant_towards_a_tenth(schedule: str) -> None:
    settings = SearchSettings(rollouts=10, exploration=2.0, exploration_schedule=schedule)  # type: ignore[arg-type]
    weights = [settings.exploration_at(rollout) for rollout in range(11)]
    assert weights[0] == 2.0
    assert weights[10] == pytest.approx(0.2)
    assert weights == sorted(weights, reverse=True)
