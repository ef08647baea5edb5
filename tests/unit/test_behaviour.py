"""The comparison of engine and learner: rounding passes, everything else is refused, and the right side is named."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from treeopo.errors import ConfigError
from treeopo.learner.distributed import Team
from treeopo.learner.newest_tokens import NewestTokens
from treeopo.records import FloatArray
from treeopo.rollout.behaviour import FEWEST_TOKENS, BehaviourWatch, Suspect, compare_behaviour
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


@dataclass(frozen=True)
class Found:
    """What a later comparison says."""

    kl: float = 2e-5
    mass: float = 1.0
    mass_error: float = 0.0
    tokens: int = 10**9


def test_a_later_comparison_may_be_so_many_times_the_first_and_only_two_that_fail_in_a_row_are_told() -> None:
    watch = BehaviourWatch(SETTINGS, Found(kl=2e-5))
    assert [watch.judge(number, Found(kl=3.9e-4)) for number in range(3)] == [None] * 3
    told = [(watch.judge(3, Found(kl=4.1e-4)), watch.doubts), (watch.judge(4, Found()), watch.doubts)]
    assert told == [(None, True), (None, False)]
    assert watch.judge(5, Found(kl=4.1e-4)) is None
    complaint = watch.judge(6, Found(kl=5e-4))
    assert complaint is not None
    assert complaint.startswith("step 7: the engine says that it serves version 6, but")
    assert "KL 0.0005 a token, at most 0.0004" in complaint
    assert "\n" not in complaint


def test_too_few_tokens_and_steps_that_are_not_finite_are_passed_over() -> None:
    watch = BehaviourWatch(SETTINGS, Found())
    for passed_over in (Found(kl=1.0, tokens=FEWEST_TOKENS - 1), Found(kl=math.nan), Found(kl=math.inf)):
        assert watch.judge(0, Found(kl=1.0)) is None
        assert watch.judge(1, passed_over) is None
        assert watch.doubts  # it neither clears the engine nor condemns it
        assert watch.judge(2, Found()) is None


@pytest.mark.parametrize(
    ("first", "growth", "fails", "passes"),
    [
        (0.0, 20, 1.1e-5, 0.9e-5),  # rounding of two exact sides
        (0.01, 20, 0.021, 0.019),  # never more than max_kl
        (1e-3, 3, 3.1e-3, 2.9e-3),
        (0.0, math.inf, 0.021, 0.019),  # max_kl alone
    ],
)
def test_the_bound_of_the_kl(first: float, growth: float, fails: float, passes: float) -> None:
    watch = BehaviourWatch(replace(SETTINGS, max_growth=growth), Found(kl=first))
    watch.judge(0, Found(kl=passes))
    assert not watch.doubts
    watch.judge(1, Found(kl=fails))
    assert watch.doubts


def test_where_the_sides_round_a_quarter_of_a_nat_is_let_pass_in_a_comparison_of_any_size() -> None:
    """What a bfloat16 engine that served what it said had: 5e-4 a token over 103 tokens, after 5e-6."""
    for first, passes in ((5e-6, True), (0.0, False)):
        watch = BehaviourWatch(SETTINGS, Found(kl=first))
        watch.judge(0, Found(kl=5.3e-4, tokens=103))
        assert watch.doubts is not passes
    watch = BehaviourWatch(SETTINGS, Found(kl=5e-6))
    watch.judge(0, Found(kl=2.6e-3, tokens=103))
    assert watch.doubts


def test_a_few_certain_tokens_do_not_make_the_rounding_of_the_others_suspect() -> None:
    """What another such engine had: 5e-13 over the 40 tokens of the first comparison, which began deep in solutions,
    1.6e-5 over all of the first batch, and 1e-4 later."""
    for kl, tokens, passes in ((1e-4, 862, True), (1e-4, 20_000, True), (2e-3, 20_000, False)):
        watch = BehaviourWatch(SETTINGS, Found(kl=5e-13, tokens=40))
        watch.trust(Found(kl=1.6e-5, tokens=960))
        watch.judge(4, Found(kl=kl, tokens=tokens))
        assert watch.doubts is not passes


def test_a_sampler_that_begins_to_truncate_fails_by_its_mass() -> None:
    watch = BehaviourWatch(SETTINGS, Found())
    watch.judge(0, Found(mass=0.97, mass_error=0.01))
    assert not watch.doubts
    watch.judge(1, Found(mass=0.97, mass_error=0.002))
    assert watch.doubts


@pytest.mark.parametrize("growth", [0.5, -1.0, math.nan])
def test_a_growth_below_one_is_refused(growth: float) -> None:
    with pytest.raises(ConfigError, match=r"behaviour\.max_growth is .*must be 1 or more"):
        BehaviourSettings(max_growth=growth)


def test_the_newest_tokens_are_compared_as_the_first_ones_are_whatever_the_micro_batches() -> None:
    random = np.random.default_rng(2)
    engine = random.normal(-3, 1, 200).astype(np.float32)
    learner = engine + random.normal(0, 0.3, 200).astype(np.float32)
    version = random.integers(3, 6, 200)
    newest = NewestTokens(5)
    for part in np.array_split(np.arange(200), 7):
        newest.add(torch.from_numpy(version[part]), torch.from_numpy(learner[part] - engine[part]))
    found = newest.over(Team())
    expected = compare_behaviour(engine[version == 5], learner[version == 5])
    assert found is not None
    assert found.tokens == expected.tokens == (version == 5).sum()
    for name in ("kl", "mass", "mass_error"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-5), name


def test_without_a_token_of_the_newest_version_nothing_is_found() -> None:
    newest = NewestTokens(5)
    assert newest.over(Team()) is None
    newest.add(torch.tensor([3, 4]), torch.tensor([0.1, 0.2]))
    assert newest.over(Team()) is None
