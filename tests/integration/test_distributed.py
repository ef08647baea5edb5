"""Two processes over gloo take the step of one: the same gradient, and the same run through torchrun."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from tests.gradients import step
from tests.servers import free_port
from tests.tiny_models import random_qwen2
from tests.unit import test_packing
from tests.unit.test_packing import distance, group_batch, policy
from treeopo.learner.distributed import Team
from treeopo.learner.learner import Learner
from treeopo.learner.losses import Losses
from treeopo.learner.losses.policy_gradient import PolicyGradient
from treeopo.learner.losses.prefix_likelihood import PrefixLikelihood

pytestmark = pytest.mark.processes

SETTINGS = replace(test_packing.SETTINGS, prefix_loss=0.1)

SET = ["solutions.problems=staged-arithmetic:easy:train", "learner.lora.dropout=0.0", "rollout.batch_size=8"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_qwen2(tmp_path_factory.mktemp("models") / "qwen2")


def one_step(rank: int, size: int, port: int, model: Path, result: Path) -> None:
    """A process of its own: the gradient and the metrics of one step, from the first rank."""
    team = Team(rank, size, rank, ("localhost", port, True)) if size > 1 else Team()
    losses: Losses = [PolicyGradient(SETTINGS), PrefixLikelihood(SETTINGS.prefix_loss)]
    learner = Learner(policy(model), losses, SETTINGS, steps=4, temperature=1.0, team=team)
    batch = group_batch()
    if rank > 0:
        batch = team.receive()
    else:
        team.send(batch)
    gradient, metrics = step(learner, batch)
    after = [parameter.detach().clone() for parameter in learner.policy.trainable]
    agreement = asdict(learner.agreement) if learner.agreement else {}
    torch.save(
        {"gradient": gradient, "metrics": metrics, "after": after, "agreement": agreement}, result / f"{size}-{rank}.pt"
    )


def test_two_processes_give_the_gradient_of_one_and_stay_equal(model: Path, tmp_path: Path) -> None:
    spawn(one_step, (2, free_port(), model, tmp_path), nprocs=2)
    one_step(0, 1, 0, model, tmp_path)
    alone, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    assert distance(first["gradient"], alone["gradient"]) < 1e-5
    assert all(torch.equal(a, b) for a, b in zip(first["after"], second["after"], strict=True))
    whole = ("loss", "grad_norm", "entropy", "tokens", "prefix_logprob", "prefix_logprob_per_token")
    for name in (f"learner/{name}" for name in whole):
        assert first["metrics"][name] == pytest.approx(alone["metrics"][name], rel=1e-4), name
    assert first["agreement"] == pytest.approx(alone["agreement"], rel=1e-4)
    assert alone["agreement"]["tokens"] == sum(row.completion_length for row in group_batch().sequences)


def train(launcher: list[str], model: Path, output: Path, more: Sequence[str] = ()) -> list[dict[str, float]]:
    arguments = ["--method", "sft", "--student", model, "--output", output, "--steps", "4"]
    options = [part for setting in [*SET, *more] for part in ("--set", setting)]
    command = [*launcher, "-m", "treeopo_cli.main", "train", *map(str, arguments), *options]
    subprocess.run(command, check=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("options", [[], ["learner.fsdp=true"]], ids=["whole base", "fsdp"])
def test_torchrun_trains_as_one_process_does_and_resumes(model: Path, tmp_path: Path, options: list[str]) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    alone, together = (
        train([sys.executable], model, tmp_path / "one"),
        train(torchrun, model, tmp_path / "two", options),
    )
    assert len(together) == 4
    for name in ("learner/loss", "learner/grad_norm"):
        assert [row[name] for row in together] == pytest.approx([row[name] for row in alone], rel=1e-3), name
    again = [*torchrun, "-m", "treeopo_cli.main", "train", "--resume", str(tmp_path / "two")]
    subprocess.run(again, check=True, timeout=300)  # complete: summed up, and nobody is left waiting
