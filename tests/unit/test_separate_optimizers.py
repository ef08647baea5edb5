"""A term with an optimiser of its own: the same updates as separate passes, and all of it survives a restart."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.optim import AdamW

from tests.gradients import step
from tests.tiny_models import random_qwen2
from tests.unit.test_learner import LORA, SETTINGS, batch, policy
from treeopo.learner.learner import Learner
from treeopo.learner.losses import Forward, Loss, SeparateLoss
from treeopo.learner.losses.policy_gradient import PolicyGradient
from treeopo.learner.microbatch import MicroBatch
from treeopo.learner.policy import LoraPolicy
from treeopo.learner.settings import OptimizerSettings
from treeopo.records import TrainBatch, TrainSequence

OWN = OptimizerSettings(learning_rate=3e-2, weight_decay=0.1, max_grad_norm=0.5)
SMALL = replace(SETTINGS, microbatch_tokens=40)


class Likelihood:
    """-sum of log pi / 10, and the mean square of the weights of a module beside the policy."""

    def __init__(self, module: torch.nn.Linear | None = None, first: int = 0) -> None:
        self.module = module
        self._first = first

    def begin(self, batch: TrainBatch) -> bool:
        return batch.number >= self._first

    def wants(self, sequence: TrainSequence) -> bool:
        return True

    def loss(self, micro: MicroBatch, forward: Forward) -> Tensor:
        loss = -forward.logprobs_C.sum() / 10
        return loss if self.module is None else loss + self.module(forward.hidden_CH.detach().float()).square().mean()

    def metrics(self) -> dict[str, float]:
        return {}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_qwen2(tmp_path_factory.mktemp("models") / "qwen2")


def gradient(model: Path, rows: TrainBatch, *losses: PolicyGradient | Likelihood) -> list[Tensor]:
    """Of these losses alone, unclipped, by a learner that knows no other."""
    unclipped = replace(SMALL, optimizer=OptimizerSettings(max_grad_norm=1e9))
    return step(Learner(policy(model), losses, unclipped, steps=9, temperature=1.0), rows)[0]


def test_two_optimisers_over_one_adapter_take_the_steps_of_two_separate_passes(model: Path) -> None:
    adapted = policy(model)
    own = SeparateLoss("own", Likelihood(), OWN, adapted.trainable)
    metrics = Learner(adapted, [PolicyGradient(SMALL), own], SMALL, steps=9, temperature=1.0).step(batch())
    expected = policy(model)
    of_term = [gradient(model, batch(), PolicyGradient(SMALL)), gradient(model, batch(), Likelihood())]
    for gradients, settings in zip(of_term, (SMALL.optimizer, OWN), strict=True):
        for parameter, value in zip(expected.trainable, gradients, strict=True):
            parameter.grad = value.clone()
        norm = torch.nn.utils.clip_grad_norm_(expected.trainable, settings.max_grad_norm)
        AdamW(expected.trainable, lr=settings.learning_rate, weight_decay=settings.weight_decay).step()
        assert metrics[
            "learner/grad_norm" if settings is SMALL.optimizer else "learner/own_grad_norm"
        ] == pytest.approx(float(norm))
    for ours, theirs in zip(adapted.trainable, expected.trainable, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_terms_without_an_optimiser_of_their_own_are_summed(model: Path) -> None:
    together = gradient(model, batch(), PolicyGradient(SMALL), Likelihood())
    parts = [gradient(model, batch(), loss) for loss in (PolicyGradient(SMALL), Likelihood())]
    for ours, first, second in zip(together, *parts, strict=True):
        torch.testing.assert_close(ours, first + second, rtol=1e-5, atol=1e-8)  # weights are float32


def test_a_term_whose_turn_has_not_come_leaves_its_weights_exactly_alone(model: Path) -> None:
    """Weight decay and moments included."""
    settings = replace(SMALL, optimizer=replace(OWN, learning_rate=1e-2))
    adapted = policy(model)
    head = torch.nn.Linear(64, 1)
    own = SeparateLoss("own", Likelihood(head), OWN, list(head.parameters()), head)
    learner = Learner(adapted, [Likelihood(first=2), own], settings, steps=9, temperature=1.0)
    before = [parameter.clone() for parameter in adapted.trainable]
    for number in range(2):
        learner.step(batch(number))
        assert all(torch.equal(a, b) for a, b in zip(before, adapted.trainable, strict=True))
    learner.step(batch(2))
    assert not any(torch.equal(a, b) for a, b in zip(before, adapted.trainable, strict=True))


def test_every_optimiser_and_module_survives_a_restart_bit_for_bit(model: Path, tmp_path: Path) -> None:
    settings = replace(SMALL, lora=replace(LORA, dropout=0.2))

    def fresh(adapter: Path | None = None) -> tuple[Learner, torch.nn.Linear]:
        torch.manual_seed(5 if adapter is None else 6)
        cpu = torch.device("cpu")
        loaded = LoraPolicy.load(str(model), settings.lora, dtype=torch.float32, device=cpu, adapter=adapter)
        head = torch.nn.Linear(64, 1)
        losses: list[Loss | SeparateLoss] = [
            PolicyGradient(settings),
            SeparateLoss("adapter", Likelihood(), OWN, loaded.trainable),
            SeparateLoss("head", Likelihood(head), OWN, list(head.parameters()), head),
        ]
        return Learner(loaded, losses, settings, steps=6, temperature=1.0), head

    whole, head = fresh()
    for number in range(3):
        whole.step(batch(number))
    whole.save_state(tmp_path)
    resumed, resumed_head = fresh(tmp_path / "adapter")
    resumed.load_state(tmp_path)
    for number in range(3, 6):
        whole.step(batch(number))
    torch.set_rng_state(torch.load(tmp_path / "optimizer.pt", weights_only=True)["torch_rng"])
    for number in range(3, 6):
        resumed.step(batch(number))
    assert all(torch.equal(a, b) for a, b in zip(whole.policy.trainable, resumed.policy.trainable, strict=True))
    assert torch.equal(head.weight, resumed_head.weight)
    assert torch.equal(head.bias, resumed_head.bias)
