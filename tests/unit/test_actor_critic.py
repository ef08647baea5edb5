"""The actor learns from GAE advantages, the critic from lambda-returns, and neither moves the other's weights."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.tiny_models import random_qwen2
from tests.unit.test_learner import LORA, SETTINGS, batch, policy
from treeopo.learner.critic import ValueHead, make_critic
from treeopo.learner.learner import Learner
from treeopo.learner.losses import Forward, Loss, SeparateLoss
from treeopo.learner.losses.actor_critic import Actor, ValueRegression, gae
from treeopo.learner.losses.policy_gradient import PolicyGradient
from treeopo.learner.microbatch import MicroBatch, micro_batches
from treeopo.learner.policy import LoraPolicy
from treeopo.learner.settings import CriticSettings, LearnerSettings, OptimizerSettings
from treeopo.records import TrainBatch

CRITIC = CriticSettings(warmup_steps=2)
SMALL = replace(SETTINGS, microbatch_tokens=40)
Architecture = Literal["head", "decoder"]
BOTH = pytest.mark.parametrize("architecture", ["head", "decoder"])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_qwen2(tmp_path_factory.mktemp("models") / "qwen2")


def learner(
    adapted: LoraPolicy, critic: CriticSettings, settings: LearnerSettings = SMALL
) -> tuple[Learner, nn.Module]:
    values = make_critic(adapted, critic)
    own = OptimizerSettings(learning_rate=critic.learning_rate, max_grad_norm=1e9)
    losses: list[Loss | SeparateLoss] = [
        Actor(PolicyGradient(settings), values, critic),
        SeparateLoss("critic", ValueRegression(values, critic), own, list(values.parameters()), values),
    ]
    return Learner(adapted, losses, settings, steps=40, temperature=1.0), values


def critic_of(architecture: Architecture) -> CriticSettings:
    return CRITIC if architecture == "head" else replace(CRITIC, architecture=architecture, layers=1, width=64)


def copies(module: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


@BOTH
def test_while_the_critic_warms_up_it_alone_moves(model: Path, architecture: Architecture) -> None:
    adapted = policy(model, torch.float32)
    ours, critic = learner(adapted, critic_of(architecture))
    before, values_before = [p.clone() for p in adapted.trainable], copies(critic)
    for number in range(2):
        assert ours.step(batch(number))["learner/critic_warmup"] == 1
    assert all(map(torch.equal, before, adapted.trainable))
    assert not all(map(torch.equal, values_before, critic.parameters()))
    assert ours.step(batch(2))["learner/critic_warmup"] == 0
    assert not any(map(torch.equal, before, adapted.trainable))


def test_with_a_critic_of_zeros_the_actor_descends_the_policy_gradient_of_discounted_returns(model: Path) -> None:
    """GAE with V = 0 and lambda 1 is the discounted return, computed here by a loop."""
    settings = CriticSettings(warmup_steps=0, discount=0.9, decay=1.0)
    rewards = tuple(
        replace(row, advantages=np.arange(1, 1 + row.completion_length, dtype=np.float32) / np.float32(10))
        for row in batch().sequences
    )
    returns = tuple(
        replace(
            row,
            advantages=np.array(
                [
                    sum(0.9 ** (s - t) * row.advantages[s] for s in range(t, len(row.advantages)))
                    for t in range(len(row.advantages))
                ],
                np.float32,
            ),
        )
        for row in rewards
    )
    by_critic, by_hand = policy(model), policy(model)
    learner(by_critic, settings)[0].step(TrainBatch(0, rewards, {}))
    plain = Learner(by_hand, [PolicyGradient(SMALL)], SMALL, steps=40, temperature=1.0)
    plain.step(TrainBatch(0, returns, {}))
    for ours, theirs in zip(by_critic.trainable, by_hand.trainable, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-5)  # Adam magnifies tiny gradients


def test_advantages_are_those_of_each_completion_alone(model: Path) -> None:
    rows = batch().sequences
    (together,) = micro_batches(rows, 10_000, torch.device("cpu"), share=False)
    torch.manual_seed(0)
    value = torch.randn(len(together.row_C))
    whole = gae(together, value, CRITIC)
    for index, row in enumerate(sorted(rows, key=lambda row: len(row.token_ids), reverse=True)):
        (alone,) = micro_batches([row], 10_000, torch.device("cpu"))
        chosen = together.row_C == index
        torch.testing.assert_close(whole[chosen], gae(alone, value[chosen], CRITIC))


@BOTH
def test_the_critic_comes_to_explain_the_returns_of_a_fixed_batch(model: Path, architecture: Architecture) -> None:
    fast = replace(critic_of(architecture), warmup_steps=100, learning_rate=2e-2, decay=1.0)
    ours, _ = learner(policy(model, torch.float32), fast)
    explained = [ours.step(replace(batch(), number=number))["learner/critic_explained"] for number in range(30)]
    assert explained[-1] > max(0.5, explained[0])


class AlwaysHalf(nn.Module):
    def forward(self, micro: MicroBatch, forward: Forward) -> Tensor:
        return torch.full((len(micro.row_C),), 0.5)


def test_the_critics_figures_are_of_the_tokens_it_was_shown(model: Path) -> None:
    """A process of several sees its share of a batch, in several micro-batches; the loss is of the whole batch."""
    whole = batch()
    shown = [micro for row in whole.sequences[:2] for micro in micro_batches([row], 10_000, torch.device("cpu"))]
    nothing = torch.empty(0)
    regression = ValueRegression(AlwaysHalf(), CRITIC)
    assert regression.begin(whole)
    losses = [regression.loss(micro, Forward(nothing, nothing, nothing, nn.Identity())) for micro in shown]
    errors = torch.cat([gae(micro, torch.full((len(micro.row_C),), 0.5), CRITIC) for micro in shown])
    targets = errors + 0.5
    assert torch.stack(losses).sum().item() == pytest.approx(
        errors.square().sum().item() / sum(row.completion_length for row in whole.sequences)
    )
    metrics = regression.metrics()
    assert metrics["learner/critic_target_mean"] == pytest.approx(targets.mean().item())
    assert metrics["learner/critic_explained"] == pytest.approx(
        1 - errors.square().mean().item() / targets.var(correction=0).item()
    )


@BOTH
def test_critic_and_both_optimisers_survive_a_restart_bit_for_bit(
    model: Path, tmp_path: Path, architecture: Architecture
) -> None:
    settings = replace(SMALL, lora=replace(LORA, dropout=0.2))
    critic = critic_of(architecture)

    def fresh(adapter: Path | None = None) -> tuple[Learner, nn.Module]:
        torch.manual_seed(5 if adapter is None else 6)
        cpu = torch.device("cpu")
        return learner(
            LoraPolicy.load(str(model), settings.lora, dtype=torch.float32, device=cpu, adapter=adapter),
            critic,
            settings,
        )

    whole, values = fresh()
    for number in range(2):
        whole.step(batch(number))
    whole.save_state(tmp_path)
    for number in range(2, 5):
        whole.step(batch(number))
    resumed, resumed_values = fresh(tmp_path / "adapter")
    resumed.load_state(tmp_path)
    for number in range(2, 5):
        resumed.step(batch(number))
    assert all(map(torch.equal, whole.policy.trainable, resumed.policy.trainable))
    assert all(map(torch.equal, values.parameters(), resumed_values.parameters()))


def test_a_decoder_values_a_state_the_same_whatever_it_is_padded_to(model: Path) -> None:
    adapted = policy(model, torch.float32)
    critic = make_critic(adapted, critic_of("decoder"))
    nn.init.normal_(critic.out.weight)  # type: ignore[union-attr, arg-type]
    rows = batch().sequences
    (together,) = micro_batches(rows, 10_000, torch.device("cpu"), share=False)
    value = critic(together, None)
    for index, row in enumerate(sorted(rows, key=lambda row: len(row.token_ids), reverse=True)):
        (alone,) = micro_batches([row], 10_000, torch.device("cpu"))
        torch.testing.assert_close(critic(alone, None), value[together.row_C == index], rtol=1e-4, atol=1e-5)
    assert not isinstance(critic, ValueHead)
