"""Every correction, its clip and its metrics against a loop over ragged sequences written from the papers."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.flat import Token, flat
from tests.profiles import examples
from treeopo.learner.losses.policy_gradient import PolicyGradient
from treeopo.learner.settings import Aggregation, Correction, LearnerSettings
from treeopo.records import TrainBatch

CORRECTIONS: tuple[Correction, ...] = get_args(Correction)
AGGREGATIONS: tuple[Aggregation, ...] = get_args(Aggregation)
BY_SEQUENCE = {"sequence-truncate", "sequence-mask", "geometric-mask"}

logprobs = st.floats(-8, -0.01)
tokens = st.builds(
    lambda current, gap, noise, advantage: Token(current + noise, current, current + gap, advantage),
    logprobs,
    st.floats(-3, 3),
    st.floats(-0.5, 0.5),
    st.floats(-2, 2).map(lambda advantage: round(advantage, 6)),
)
ragged = st.lists(st.lists(tokens, min_size=1, max_size=6), min_size=1, max_size=5)


def weight(correction: str, ratios: Sequence[float], at: int, low: float, high: float) -> tuple[float, bool]:
    """The weight of token `at` of a sequence with these token ratios, and whether the bounds changed it."""
    product = math.prod(ratios)
    judged = {
        "none": 1.0,
        "token-truncate": ratios[at],
        "token-mask": ratios[at],
        "decoupled-ppo": ratios[at],
        "sequence-truncate": product,
        "sequence-mask": product,
        "geometric-mask": product ** (1 / len(ratios)),
    }[correction]
    out = not low <= judged <= high
    if correction == "none":
        return 1.0, False
    if correction.endswith("truncate"):
        return min(max(judged, low), high), out
    if correction == "geometric-mask":
        return (0.0 if out else 1.0), out
    return (0.0 if out else judged), out


def reference(sequences: Sequence[Sequence[Token]], settings: LearnerSettings) -> tuple[float, list[float], int, int]:
    """The loss, its derivative by each log-probability, and how many tokens bounds and clip changed."""
    low, high = settings.correction_bounds
    count = sum(map(len, sequences))
    loss, gradient, limited, clipped = 0.0, [], 0, 0
    for sequence in sequences:
        ratios = [math.exp(token.current - token.behaviour) for token in sequence]
        scale = {
            "sum": 1 / len(sequences),
            "sequence-mean": 1 / len(sequences) / len(sequence),
            "token-mean": 1 / count,
            "constant": 1 / len(sequences) / settings.constant_tokens,
        }[settings.aggregation]
        for at, token in enumerate(sequence):
            w, out = weight(settings.correction, ratios, at, low, high)
            limited += out
            ratio = ratios[at]
            if settings.correction == "decoupled-ppo":
                ratio = math.exp(token.dropped - token.current)
                w *= ratio
            bottom = 1 - settings.clip_low if settings.clip_low else -math.inf
            top = 1 + settings.clip_high if settings.clip_high else math.inf
            if (token.advantage > 0 and ratio > top) or (token.advantage < 0 and ratio < bottom):
                clipped += 1
                loss -= scale * w * token.advantage * min(max(ratio, bottom), top) / ratio
                gradient.append(0.0)
            else:
                loss -= scale * w * token.advantage
                gradient.append(-scale * w * token.advantage)
    return loss, gradient, limited, clipped


def objective_of(sequences: Sequence[Sequence[Token]], settings: LearnerSettings) -> PolicyGradient:
    class Row:
        def __init__(self, completion_length: int) -> None:
            self.completion_length = completion_length

    objective = PolicyGradient(settings)
    objective.begin(TrainBatch(0, tuple(Row(len(sequence)) for sequence in sequences), {}))  # type: ignore[misc]
    return objective


@pytest.mark.parametrize("clip", [{}, {"clip_low": 0.2, "clip_high": 0.28}, {"clip_high": 0.1}])
@pytest.mark.parametrize("correction", CORRECTIONS)
@examples(0.2)
@given(sequences=ragged, aggregation=st.sampled_from(AGGREGATIONS))
def test_loss_gradient_and_counts_are_those_of_a_loop_over_tokens(
    correction: Correction, clip: dict[str, float], sequences: list[list[Token]], aggregation: Aggregation
) -> None:
    settings = LearnerSettings(correction=correction, aggregation=aggregation, **clip)  # type: ignore[arg-type]
    objective = objective_of(sequences, settings)
    micro, forward = flat(sequences)
    loss = objective.loss(micro, forward)  # type: ignore[arg-type]
    loss.backward()
    expected, gradient, limited, clipped = reference(sequences, settings)
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert forward.logprobs_C.grad is not None
    assert forward.logprobs_C.grad.tolist() == pytest.approx(gradient, rel=1e-9, abs=1e-12)
    metrics = objective.metrics()
    assert metrics["learner/limited_share"] == pytest.approx(limited / len(gradient))
    assert metrics["learner/clip_share"] == pytest.approx(clipped / len(gradient))


@pytest.mark.parametrize("correction", CORRECTIONS)
@examples(0.2)
@given(sequences=ragged)
def test_mismatch_and_effective_sample_sizes_are_their_definitions(
    correction: Correction, sequences: list[list[Token]]
) -> None:
    objective = objective_of(sequences, LearnerSettings(correction=correction))
    micro, forward = flat(sequences)
    objective.loss(micro, forward)  # type: ignore[arg-type]
    metrics = objective.metrics()
    logs = [[token.current - token.behaviour for token in sequence] for sequence in sequences]
    every = [log for sequence in logs for log in sequence]
    assert metrics["learner/mismatch_kl_k1"] == pytest.approx(-sum(every) / len(every), abs=1e-9)
    assert metrics["learner/mismatch_kl"] == pytest.approx(
        sum(math.expm1(log) - log for log in every) / len(every), abs=1e-9
    )
    assert metrics["learner/log_ratio_max"] == pytest.approx(max(map(abs, every)))
    assert metrics["learner/ess_share"] == pytest.approx(effective_share([math.exp(log) for log in every]))
    assert ("learner/ess_share_sequences" in metrics) == (correction in BY_SEQUENCE)
    if correction in BY_SEQUENCE:
        judged = [math.exp(sum(log) / (len(log) if correction == "geometric-mask" else 1)) for log in logs]
        assert metrics["learner/ess_share_sequences"] == pytest.approx(effective_share(judged))


def effective_share(weights: Sequence[float]) -> float:
    return sum(weights) ** 2 / len(weights) / sum(w * w for w in weights)


@pytest.mark.parametrize("correction", CORRECTIONS)
@examples(0.2)
@given(sequences=ragged)
def test_on_policy_every_correction_is_the_plain_gradient(correction: Correction, sequences: list[list[Token]]) -> None:
    same = [[replace(token, behaviour=token.current, dropped=token.current) for token in row] for row in sequences]
    gradients = []
    for chosen in (correction, "none"):
        settings = LearnerSettings(correction=chosen, clip_low=0.2, clip_high=0.2)
        objective = objective_of(same, settings)
        micro, forward = flat(same)
        objective.loss(micro, forward).backward()  # type: ignore[arg-type]
        gradients.append(forward.logprobs_C.grad)
        metrics = objective.metrics()
        assert metrics["learner/weight_mean"] == 1
        assert metrics["learner/ess_share"] == pytest.approx(1)
        assert metrics["learner/mismatch_kl"] == metrics["learner/limited_share"] == metrics["learner/clip_share"] == 0
    assert gradients[0] is not None
    assert gradients[1] is not None
    assert torch.equal(gradients[0], gradients[1])


@pytest.mark.parametrize("correction", CORRECTIONS)
@examples(0.2)
@given(data=st.data(), sequences=ragged)
def test_ratios_of_e_to_the_hundred_leave_loss_gradient_and_metrics_finite(
    correction: Correction, data: st.DataObject, sequences: list[list[Token]]
) -> None:
    extreme = st.sampled_from([-100.0, -50.0, 0.0, 50.0, 100.0])
    far = [[replace(token, behaviour=token.current + data.draw(extreme)) for token in row] for row in sequences]
    settings = LearnerSettings(correction=correction, clip_low=0.2, clip_high=0.2)
    objective = objective_of(far, settings)
    micro, forward = flat(far)
    single = replace(micro, **{name: getattr(micro, name).float() for name in ("behaviour_C", "advantage_C")})
    logprobs_C = forward.logprobs_C.detach().float().requires_grad_()
    loss = objective.loss(
        single,  # type: ignore[arg-type]
        replace(forward, logprobs_C=logprobs_C, current_C=forward.current_C.float()),
    )
    loss.backward()
    assert loss.isfinite()
    assert logprobs_C.grad is not None
    assert logprobs_C.grad.isfinite().all()
    assert all(map(math.isfinite, objective.metrics().values()))
