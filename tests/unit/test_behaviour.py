"""The comparison of engine and learner: rounding passes, everything else is refused, and the right side is named."""

import numpy as np
import pytest
import torch

from treeopo.records import FloatArray
from treeopo.rollout.behaviour import Suspect, compare_behaviour
from treeopo.rollout.settings import BehaviourSettings

SETTINGS = BehaviourSettings()
C, V = 400, 300


def logits(seed: int) -> FloatArray:
    """Peaked for some tokens and flat for others, as those of language models are."""
    random = np.random.default_rng(seed)
    return (random.standard_normal((C, V)) * random.uniform(0.5, 6.0, (C, 1))).astype(np.float32)


def log_softmax(logits_CV: FloatArray) -> FloatArray:
    found: FloatArray = torch.log_softmax(torch.from_numpy(logits_CV), -1).numpy()
    return found


def sampled(logprobs_CV: FloatArray, seed: int = 9) -> np.ndarray:
    """Gumbel-max."""
    noise = np.random.default_rng(seed).gumbel(size=logprobs_CV.shape)
    return np.asarray(np.argmax(logprobs_CV + noise, axis=1))


def chosen(logprobs_CV: FloatArray, tokens_C: np.ndarray) -> FloatArray:
    found: FloatArray = logprobs_CV[np.arange(C), tokens_C]
    return found


@pytest.mark.parametrize("seed", range(5))
def test_bfloat16_against_float32_passes(seed: int) -> None:
    exact = logits(seed)
    rounded = torch.from_numpy(exact).bfloat16().float().numpy()
    tokens = sampled(log_softmax(rounded))
    mismatch = compare_behaviour(chosen(log_softmax(rounded), tokens), chosen(log_softmax(exact), tokens))
    assert mismatch.complaint(SETTINGS) is None
    assert 0 < mismatch.kl < SETTINGS.max_kl / 10
    assert mismatch.mass == pytest.approx(1, abs=4 * mismatch.mass_error)
    assert mismatch.tokens == C


@pytest.mark.parametrize("temperature", [0.5, 0.7, 1.5])
@pytest.mark.parametrize("seed", range(3))
def test_log_probabilities_without_the_temperature_are_refused(seed: int, temperature: float) -> None:
    """What a server gives in raw_logprobs mode: tokens sampled at a temperature, log-probabilities at 1."""
    tempered = log_softmax(logits(seed) / np.float32(temperature))
    tokens = sampled(tempered)
    mismatch = compare_behaviour(chosen(log_softmax(logits(seed)), tokens), chosen(tempered, tokens))
    assert "the temperature is suspect" in str(mismatch.complaint(SETTINGS))


@pytest.mark.parametrize("top_p", [0.5, 0.8, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_a_sampler_that_truncates_is_refused(seed: int, top_p: float) -> None:
    full = log_softmax(logits(seed))
    order = np.argsort(-full, axis=1)
    mass_before = np.cumsum(np.exp(np.take_along_axis(full, order, 1)), axis=1) - np.exp(
        np.take_along_axis(full, order, 1)
    )
    kept = np.zeros_like(full, dtype=bool)
    np.put_along_axis(kept, order, mass_before < top_p, 1)
    truncated = log_softmax(np.where(kept, full, np.float32(-1e9)).astype(np.float32))
    tokens = sampled(truncated)
    mismatch = compare_behaviour(chosen(truncated, tokens), chosen(full, tokens))
    assert mismatch.suspect is Suspect.TRUNCATION
    assert mismatch.mass < 0.97
    assert "its sampler is suspect" in str(mismatch.complaint(SETTINGS))


@pytest.mark.parametrize("seed", range(3))
def test_other_weights_are_refused(seed: int) -> None:
    tokens = sampled(log_softmax(logits(seed)))
    other = chosen(log_softmax(logits(seed + 100)), tokens)
    mismatch = compare_behaviour(chosen(log_softmax(logits(seed)), tokens), other)
    assert "the weights are suspect" in str(mismatch.complaint(SETTINGS))
    assert "\n" not in str(mismatch.complaint(SETTINGS))


def test_noise_beyond_rounding_is_called_so() -> None:
    noisy = logits(0) + np.random.default_rng(5).standard_normal((C, V)).astype(np.float32) * 0.4
    tokens = sampled(log_softmax(noisy))
    mismatch = compare_behaviour(chosen(log_softmax(noisy), tokens), chosen(log_softmax(logits(0)), tokens))
    assert mismatch.suspect is Suspect.PRECISION
    assert mismatch.complaint(SETTINGS) is not None


def test_equal_sides_have_no_mismatch() -> None:
    same = np.array([-0.1, -2.0, -30.0], np.float32)
    mismatch = compare_behaviour(same, same)
    assert (mismatch.kl, mismatch.largest, mismatch.complaint(SETTINGS)) == (0.0, 0.0, None)
