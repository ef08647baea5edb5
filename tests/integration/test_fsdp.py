"""A base cut over two processes gives the gradient, the log-probabilities and the published weights of a whole one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.multiprocessing.spawn import spawn

from tests.gradients import step
from tests.servers import free_port
from tests.tiny_models import random_qwen2
from tests.unit.test_packing import LORA, SETTINGS, distance, group_batch, policy, windowed
from treeopo.errors import ModelError
from treeopo.learner.distributed import Team
from treeopo.learner.learner import Learner
from treeopo.learner.losses import Losses, SeparateLoss
from treeopo.learner.losses.cross_entropy import CrossEntropy
from treeopo.learner.losses.policy_gradient import PolicyGradient
from treeopo.learner.policy import LoraPolicy
from treeopo.records import TrainBatch

pytestmark = pytest.mark.processes

CUT = replace(SETTINGS, microbatch_tokens=60)  # several micro-batches on each process, not as many on one as on another
WHOLE = group_batch()
SINGLE = TrainBatch(0, WHOLE.sequences[:1], {})
DROPOUT = replace(CUT, lora=replace(LORA, dropout=0.1))


def gradient_only(adapted: LoraPolicy) -> Losses:
    return [PolicyGradient(CUT)]


def with_an_optimizer_of_its_own(adapted: LoraPolicy) -> Losses:
    return [PolicyGradient(CUT), SeparateLoss("kl", CrossEntropy(), CUT.optimizer, adapted.trainable)]


CASES = {
    "unequal numbers of micro-batches": (CUT, gradient_only, WHOLE),
    "a process without a sequence": (CUT, gradient_only, SINGLE),
    "layers computed again": (replace(CUT, gradient_checkpointing=True), gradient_only, WHOLE),
    "two backward passes": (CUT, with_an_optimizer_of_its_own, WHOLE),
}


def trial(rank: int, size: int, port: int, model: Path, result: Path) -> None:
    """A process of its own: every case, and what the first process would save and say."""
    torch.set_num_threads(1)
    team = Team(rank, size, rank, ("localhost", port, True)) if size > 1 else Team()
    if size > 1:
        if rank == 0:
            team.send("met")
        else:
            assert team.receive() == "met"
    found = {}
    for name, (settings, terms, batch) in CASES.items():
        adapted = policy(model, sharded=size > 1)
        learner = Learner(adapted, terms(adapted), settings, steps=4, temperature=1.0, team=team)
        gradients, metrics = step(learner, batch)
        learner.save_merged(result / f"{size}-{name}.safetensors")
        found[name] = {
            "gradients": gradients,
            "learner/loss": metrics["learner/loss"],
            "policy": [torch.as_tensor(row) for row in learner.policy_logprobs(batch.sequences)],
            "reference": [torch.as_tensor(row) for row in learner.reference_logprobs(batch.sequences)],
        }
    dropped = policy(model, lora=DROPOUT.lora, sharded=size > 1)
    dropping = Learner(dropped, gradient_only(dropped), DROPOUT, steps=4, temperature=1.0, team=team)
    found["dropout"] = {"gradients": step(dropping, WHOLE)[0]}
    torch.save(found | {"held": held(dropped)}, result / f"{size}-{rank}.pt")


def held(adapted: LoraPolicy) -> int:
    """Weights of the decoder layers' linear maps that this process keeps."""
    weights = [p for name, p in adapted.model.named_parameters() if "base_layer.weight" in name]
    return sum(p.to_local().numel() if hasattr(p, "to_local") else p.numel() for p in weights)


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, result = random_qwen2(tmp_path_factory.mktemp("models") / "qwen2"), tmp_path_factory.mktemp("trials")
    spawn(trial, (2, free_port(), model, result), nprocs=2)
    trial(0, 1, 0, model, result)
    return result


def outcomes(trials: Path) -> list[dict[str, Any]]:
    """Of one process alone, and of the two."""
    return [torch.load(trials / f"{name}.pt") for name in ("1-0", "2-0", "2-1")]


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_that_of_one_process_on_every_process(trials: Path, case: str) -> None:
    alone, first, second = (outcome[case] for outcome in outcomes(trials))
    assert len(alone["gradients"]) > 0
    assert distance(first["gradients"], alone["gradients"]) < 1e-5
    assert all(torch.equal(a, b) for a, b in zip(first["gradients"], second["gradients"], strict=True))
    assert first["learner/loss"] == pytest.approx(alone["learner/loss"], rel=1e-5)


@pytest.mark.parametrize("of", ["policy", "reference"])
def test_log_probabilities_are_those_of_one_process(trials: Path, of: str) -> None:
    alone, first, _ = outcomes(trials)
    for case in CASES:
        for one, other in zip(alone[case][of], first[case][of], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_the_published_weights_are_whole(trials: Path, case: str) -> None:
    alone, cut = (load_file(trials / f"{size}-{case}.safetensors") for size in (1, 2))
    assert alone.keys() == cut.keys()
    for name in alone:
        torch.testing.assert_close(cut[name], alone[name], rtol=1e-4, atol=1e-5)


def test_each_process_keeps_half_of_every_layer(trials: Path) -> None:
    alone, first, second = (outcome["held"] for outcome in outcomes(trials))
    assert first + second == alone
    assert first == second


def test_a_model_that_cannot_be_packed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be packed"):
        policy(windowed(tmp_path), sharded=True)


def test_dropout_and_its_second_pass_keep_the_processes_together(trials: Path) -> None:
    _, first, second = (outcome["dropout"]["gradients"] for outcome in outcomes(trials))
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(first, second, strict=True))
    assert any(gradient.any() for gradient in first)
