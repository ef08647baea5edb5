"""The learner's gradient against exact enumeration: all completions of up to three tokens, a vocabulary of five."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.gradients import gradient
from treeopo.learner.learner import Learner
from treeopo.learner.losses.policy_gradient import PolicyGradient
from treeopo.learner.policy import LoraPolicy
from treeopo.learner.settings import Correction, LearnerSettings, LoraSettings, OptimizerSettings
from treeopo.records import TrainBatch, TrainSequence

VOCABULARY, END, LONGEST = 5, 4, 3
PROMPT = (1, 3)
LORA = LoraSettings(rank=2, alpha=4, dropout=0.0)
UNCLIPPED = OptimizerSettings(max_grad_norm=1e9)
SETTINGS = LearnerSettings(lora=LORA, optimizer=UNCLIPPED, correction="none", microbatch_tokens=64)
UNBOUNDED = replace(SETTINGS, correction="sequence-truncate", correction_high=float("inf"))


def completions(longest: int = LONGEST) -> Iterator[tuple[int, ...]]:
    """Every completion that ends at END or at `longest` tokens."""
    for length in range(1, longest + 1):
        for tokens in product(range(VOCABULARY), repeat=length):
            if END not in tokens[:-1] and (tokens[-1] == END or length == longest):
                yield tokens


def reward(completion: tuple[int, ...]) -> float:
    return float(sum(completion) % 3 == 0) - 0.3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("five")
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
        bos_token_id=None,
        eos_token_id=END,
        initializer_range=0.5,  # far from uniform, so that completions differ in probability
    )
    Qwen2ForCausalLM(config).save_pretrained(path)
    return path


def policy(model: Path, seed: int = 1, spread: float = 0.3) -> LoraPolicy:
    """In float64, with an adapter drawn from `seed`."""
    torch.manual_seed(seed)
    loaded = LoraPolicy.load(str(model), LORA, dtype=torch.float64, device=torch.device("cpu"))
    for name, parameter in loaded.model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=spread)
    return LoraPolicy(loaded.model.double())


def token_logprobs(adapted: LoraPolicy, longest: int = LONGEST) -> list[Tensor]:
    """log pi(c_t | prompt, c_<t) of every completion, by a plain forward of each."""
    found = []
    for completion in completions(longest):
        ids = torch.tensor([[*PROMPT, *completion]])
        logits = adapted.model(input_ids=ids).logits[0, len(PROMPT) - 1 : -1]
        found.append(torch.log_softmax(logits, -1).gather(1, ids[0, len(PROMPT) :, None])[:, 0])
    return found


def exact(adapted: LoraPolicy, objective: Callable[[Tensor], Tensor], longest: int = LONGEST) -> list[Tensor]:
    """The gradient of `objective(log-probabilities of all completions)`, by autograd."""
    logprobs = torch.stack([row.sum() for row in token_logprobs(adapted, longest)])
    return list(torch.autograd.grad(objective(logprobs), adapted.trainable))


def rewards(longest: int = LONGEST) -> Tensor:
    return torch.tensor([reward(completion) for completion in completions(longest)], dtype=torch.float64)


def expected_estimate(
    model: Path, settings: LearnerSettings, behaviour: LoraPolicy, longest: int = LONGEST
) -> list[Tensor]:
    """E over completions of `behaviour` of the learner's ascent direction.

    The estimator is linear in the advantages and a mean over samples: a batch with each completion once, its advantage
    times its probability times their number, has the expectation as its gradient.
    """
    with torch.no_grad():
        sampled = token_logprobs(behaviour, longest)
    all_of_them = list(completions(longest))
    rows = tuple(
        TrainSequence(
            token_ids=np.array([*PROMPT, *completion], np.int32),
            prefix_length=len(PROMPT),
            advantages=np.full(len(completion), logprobs.sum().exp() * len(all_of_them) * reward(completion)),
            behaviour_logprobs=logprobs.numpy(),
            versions=np.zeros(len(completion), np.int32),
        )
        for completion, logprobs in zip(all_of_them, sampled, strict=True)
    )
    return [-part for part in gradients(policy(model), settings, TrainBatch(0, rows, {}))]


def gradients(adapted: LoraPolicy, settings: LearnerSettings, batch: TrainBatch) -> list[Tensor]:
    """What the learner hands to its optimiser."""
    return gradient(Learner(adapted, [PolicyGradient(settings)], settings, steps=1, temperature=1.0), batch)[0]


def distance(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Relative to the size of the second."""
    flat, other = (torch.cat([tensor.flatten() for tensor in side]) for side in (ours, theirs))
    return float((flat - other).norm() / other.norm())


def test_the_completions_are_all_there_are(model: Path) -> None:
    with torch.no_grad():
        total = torch.stack([row.sum() for row in token_logprobs(policy(model))]).exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("correction", ["none", "token-truncate", "sequence-truncate", "sequence-mask"])
def test_on_policy_the_expected_gradient_is_that_of_the_expected_reward(model: Path, correction: Correction) -> None:
    settings = replace(SETTINGS, correction=correction)
    truth = exact(policy(model), lambda logprobs: (logprobs.exp() * rewards()).sum())
    assert distance(expected_estimate(model, settings, policy(model)), truth) < 1e-6


def test_off_policy_the_untruncated_sequence_weight_is_unbiased(model: Path) -> None:
    truth = exact(policy(model), lambda logprobs: (logprobs.exp() * rewards()).sum())
    behaviour = policy(model, seed=2, spread=0.2)
    assert distance(expected_estimate(model, UNBOUNDED, behaviour), truth) < 1e-6
    assert distance(expected_estimate(model, SETTINGS, behaviour), truth) > 0.05  # no correction: another gradient


def test_a_token_s_weight_is_unbiased_for_one_token_and_not_for_three(model: Path) -> None:
    settings = replace(UNBOUNDED, correction="token-truncate")
    behaviour = policy(model, seed=2, spread=0.2)
    truth = exact(policy(model), lambda logprobs: (logprobs.exp() * rewards(1)).sum(), longest=1)
    assert distance(expected_estimate(model, settings, behaviour, longest=1), truth) < 1e-6
    truth = exact(policy(model), lambda logprobs: (logprobs.exp() * rewards()).sum())
    assert distance(expected_estimate(model, settings, behaviour), truth) > 1e-2


@pytest.mark.parametrize(
    ("correction", "weight"),
    [
        ("sequence-truncate", lambda ratio: ratio.clamp(max=1.2)),
        ("sequence-mask", lambda ratio: ratio * (ratio <= 1.2)),
    ],
)
def test_the_bias_of_a_bound_is_what_it_cuts_off_and_no_more(
    model: Path, correction: Correction, weight: Callable[[Tensor], Tensor]
) -> None:
    """E_b[w r grad log pi] differs from the truth by the completions whose ratio is above the bound alone."""
    behaviour, current = policy(model, seed=2, spread=0.2), policy(model)
    with torch.no_grad():
        sampled = torch.stack([row.sum() for row in token_logprobs(behaviour)])
        ratio = (torch.stack([row.sum() for row in token_logprobs(current)]) - sampled).exp()
    assert (ratio > 1.2).any()
    settings = replace(SETTINGS, correction=correction, correction_high=1.2)
    estimate = expected_estimate(model, settings, behaviour)
    biased = exact(current, lambda logprobs: (sampled.exp() * weight(ratio) * rewards() * logprobs).sum())
    assert distance(estimate, biased) < 1e-6
    cut = exact(policy(model), lambda logprobs: (sampled.exp() * (ratio - weight(ratio)) * rewards() * logprobs).sum())
    truth = exact(policy(model), lambda logprobs: (logprobs.exp() * rewards()).sum())
    assert distance([kept + missing for kept, missing in zip(estimate, cut, strict=True)], truth) < 1e-6


def test_a_one_token_bandit_is_learned_from_samples_one_version_stale(model: Path) -> None:
    """Rewards alone, staged by their mean, from the policy before the last step: the best arm takes over."""
    chances = np.array([0.2, 0.5, 0.3, 0.9, 0.4])
    random = np.random.default_rng(0)
    optimizer = OptimizerSettings(learning_rate=0.05)
    settings = replace(SETTINGS, optimizer=optimizer, correction="token-truncate")
    learner = Learner(policy(model, spread=0.05), [PolicyGradient(settings)], settings, steps=60, temperature=1.0)

    def arms() -> np.ndarray:
        with torch.no_grad():
            logits = learner.policy.model(input_ids=torch.tensor([PROMPT])).logits[0, -1]
        return torch.softmax(logits, -1).numpy()

    first = before = arms()
    for number in range(60):
        now = arms()
        drawn = random.choice(VOCABULARY, size=32, p=before)
        won = (random.random(32) < chances[drawn]).astype(float)
        rows = [
            TrainSequence(
                token_ids=np.array([*PROMPT, arm], np.int32),
                prefix_length=len(PROMPT),
                advantages=np.array([score - won.mean()]),
                behaviour_logprobs=np.log(before[[arm]]),
                versions=np.array([max(0, number - 1)], np.int32),
            )
            for arm, score in zip(drawn, won, strict=True)
        ]
        learner.step(TrainBatch(number, tuple(rows), {}))
        before = now
    assert first[3] < 0.5
    assert arms()[3] > 0.95
