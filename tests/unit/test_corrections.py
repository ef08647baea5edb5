"""What the presets mean, on numbers small enough to check by hand, and what their settings refuse."""

from typing import Any

import pytest
import torch

from tests.flat import Token, flat
from treeopo.errors import ConfigError
from treeopo.learner.losses.corrections import PRESETS, correct
from treeopo.learner.settings import BOUNDS, Correction, LearnerSettings

# Two completions with token ratios (4, 1/2) and (1/4, 1): products 2 and 1/4, geometric means 1.414 and 1/2.
LOG2 = 0.6931471805599453
ROWS = [
    [Token(-1, -1, -1 - 2 * LOG2, 1.0), Token(-1, -1, -1 + LOG2, 1.0)],
    [Token(-1, -1, -1 + 2 * LOG2, 1.0), Token(-1, -1, -1, 1.0)],
]


@pytest.mark.parametrize(
    ("correction", "low", "high", "weights"),
    [
        ("none", 0, float("inf"), [1, 1, 1, 1]),
        ("token-truncate", 0, 2, [2, 0.5, 0.25, 1]),
        ("token-mask", 0.5, 5, [4, 0.5, 0, 1]),
        ("sequence-truncate", 0, 1.5, [1.5, 1.5, 0.25, 0.25]),
        ("sequence-mask", 0.5, 3, [2, 2, 0, 0]),
        ("geometric-mask", 0.6, 1.5, [1, 1, 0, 0]),
        ("decoupled-ppo", 0, 3, [0, 0.5, 0.25, 1]),
    ],
)
def test_the_weights_of_every_preset(correction: Correction, low: float, high: float, weights: list[float]) -> None:
    micro, forward = flat(ROWS)
    found = correct(micro, forward, correction, low, high)  # type: ignore[arg-type]
    assert found.weight_C.tolist() == pytest.approx(weights)
    assert not found.weight_C.requires_grad


def test_no_gradient_passes_through_weights_even_if_the_current_policy_carries_one() -> None:
    micro, forward = flat(ROWS)
    live = type(forward)(forward.logprobs_C, forward.logprobs_C * 1.0, forward.hidden_CH, forward.head)
    for correction in PRESETS:
        found = correct(micro, live, correction, *LearnerSettings(correction=correction).correction_bounds)  # type: ignore[arg-type]
        assert not any(
            tensor.requires_grad for tensor in (found.weight_C, found.judged_C, found.limited_C, found.clip_ratio_C)
        )


def test_a_completion_that_spans_versions_is_weighed_by_what_sampled_each_token() -> None:
    """The behaviour probability of a completion is the product over its tokens, whichever version made each."""
    micro, forward = flat([[Token(-1, -1, -2, 1.0), Token(-1, -1, -1, 1.0), Token(-1, -1, -0.5, 1.0)]])
    found = correct(micro, forward, "sequence-truncate", 0, float("inf"))  # type: ignore[arg-type]
    assert found.weight_C.tolist() == pytest.approx([torch.tensor(1 - 0.5).exp().item()] * 3)


def test_every_preset_but_none_has_standard_bounds_around_one() -> None:
    assert set(PRESETS) == set(BOUNDS) | {"none"}
    assert all(low < 1 < high for low, high in BOUNDS.values())


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"correction": "none", "correction_high": 2.0}, "no ratio to bound"),
        ({"correction": "token-mask", "correction_low": 6.0}, "0 <= low < high"),
        ({"correction": "token-truncate", "correction_low": -1.0}, "0 <= low < high"),
        ({"clip_low": 1.5}, "clip_low"),
        ({"clip_high": 0.0}, "clip_high"),
        ({"constant_tokens": 0}, "constant_tokens"),
        ({"max_nonfinite_steps": 0}, "max_nonfinite_steps"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as error:
        LearnerSettings(**settings)
    assert "\n" not in str(error.value)
