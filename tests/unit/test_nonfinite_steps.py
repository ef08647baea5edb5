"""A loss or gradient that is not finite changes nothing; several in a row end the run, its batch kept for replay."""

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.tiny_models import VOCABULARY, random_qwen2
from treeopo.config import TrainConfig
from treeopo.errors import DivergedError, RunError
from treeopo.learner.batch_file import read_batch, write_batch
from treeopo.learner.checkpoints import Checkpoints
from treeopo.learner.learner import OPTIMIZER_FILE, Learner
from treeopo.learner.losses.policy_gradient import PolicyGradient
from treeopo.learner.policy import LoraPolicy
from treeopo.learner.settings import LearnerSettings, LoraSettings, OptimizerSettings
from treeopo.learner.spec import LearnerSpec
from treeopo.learner.thread import LearnerThread
from treeopo.records import TrainBatch, TrainSequence
from treeopo.run.directory import RunDirectory
from treeopo.run.loop import Learn

SETTINGS = LearnerSettings(
    lora=LoraSettings(rank=2, alpha=4, dropout=0.1),
    optimizer=OptimizerSettings(learning_rate=1e-2),
    max_nonfinite_steps=2,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_qwen2(tmp_path_factory.mktemp("models") / "qwen2", layers=1)


def learner(model: Path, adapter: Path | None = None) -> Learner:
    torch.manual_seed(0)
    policy = LoraPolicy.load(
        str(model), SETTINGS.lora, dtype=torch.float32, device=torch.device("cpu"), adapter=adapter
    )
    return Learner(policy, [PolicyGradient(SETTINGS)], SETTINGS, steps=8, temperature=1.0)


def batch(number: int, advantage: float = 1.0) -> TrainBatch:
    random = np.random.default_rng(number)
    rows = [
        TrainSequence(
            token_ids=random.integers(0, VOCABULARY, 4 + length).astype(np.int32),
            prefix_length=4,
            advantages=np.full(length, (-1) ** row, np.float32),
            behaviour_logprobs=np.full(length, -5.5, np.float32),
            versions=np.full(length, number, np.int32),
            extras={"teacher": np.full(length, -3.0, np.float32)},
        )
        for row, length in enumerate((3, 5, 1))
    ]
    rows[1].advantages[2] = advantage
    return TrainBatch(number, tuple(rows), {"rollout/reward": 0.5})


def infinite_gradient(learner: Learner) -> None:
    """From here on the loss is finite and its gradient is not."""
    learner.policy.trainable[0].register_hook(lambda gradient: gradient * math.inf)


def saved(learner: Learner, directory: Path) -> tuple[Any, dict[str, Tensor]]:
    """Moments and schedules, and the adapter, as a checkpoint holds them."""
    directory.mkdir()
    learner.save_state(directory)
    state = torch.load(directory / OPTIMIZER_FILE, weights_only=True)
    return state["optimizers"], load_file(directory / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("spoil", [lambda learner: None, infinite_gradient])
def test_a_step_that_is_not_finite_leaves_adapter_optimiser_and_schedule_as_they_were(
    model: Path, spoil: Callable[[Learner], None], tmp_path: Path
) -> None:
    spoilt = learner(model)
    spoilt.step(batch(0))
    before = saved(spoilt, tmp_path / "before")
    spoil(spoilt)
    metrics = spoilt.step(batch(1, math.nan) if spoil is not infinite_gradient else batch(1))
    assert metrics["learner/nonfinite_steps"] == 1
    assert spoilt.version == 2  # batches stay in order
    torch.testing.assert_close(saved(spoilt, tmp_path / "after"), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in spoilt.policy.trainable)


def test_the_steps_that_follow_are_those_of_a_run_without_the_bad_batch(model: Path) -> None:
    """Dropout aside: its random numbers were drawn."""
    with_bad, without = learner(model), learner(model)
    for each in (with_bad, without):
        torch.manual_seed(8)
        each.step(batch(0))
    with_bad.step(batch(1, math.inf))
    without.version = 2
    for each in (with_bad, without):
        torch.manual_seed(9)
        metrics = each.step(batch(2))
        assert metrics["learner/nonfinite_steps"] == (each is with_bad)
    assert all(map(torch.equal, with_bad.policy.trainable, without.policy.trainable))


def test_only_bad_steps_in_a_row_end_the_run(model: Path) -> None:
    diverging = learner(model)
    for number, advantage in enumerate([math.nan, 1.0, math.nan]):
        diverging.step(batch(number, advantage))
    with pytest.raises(DivergedError, match=r"step 3: loss nan, .*not finite for 2 steps in a row; lower learner"):
        diverging.step(batch(3, math.nan))
    assert diverging.version == 3  # a checkpoint made now stands before the batch that was kept


def test_a_kept_batch_replayed_on_the_checkpoint_gives_the_same_loss(model: Path, tmp_path: Path) -> None:
    run = learner(model)
    run.step(batch(0))
    path = write_batch(tmp_path / "diverged-batch-000001.npz", batch(1, math.inf))
    run.save_state(tmp_path)
    replayed = learner(model, tmp_path / "adapter")
    replayed.load_state(tmp_path)
    losses = [each.step(read_batch(path))["learner/loss"] for each in (run, replayed)]
    assert not math.isfinite(losses[0])
    np.testing.assert_equal(losses[1], losses[0])


async def test_a_run_that_diverges_keeps_its_policy_and_the_batch_and_says_where(model: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, TrainConfig(store=tmp_path, output=tmp_path))
    checkpoints = Checkpoints(run.checkpoints, kept=1)
    spec = LearnerSpec(
        str(model), SETTINGS, lambda policy: [PolicyGradient(SETTINGS)], steps=8, temperature=1.0, seed=0
    )
    thread = await LearnerThread.start(spec, checkpoints)
    learn = Learn(run, thread, engine=None)
    await learn(batch(0, math.nan))
    with pytest.raises(DivergedError, match=r"step 1: .*diverged-batch-000001\.npz") as error:
        await learn(batch(1, math.nan))
    thread.close()
    assert "\n" not in str(error.value)
    assert checkpoints.latest() == run.checkpoints / "step-000001"
    assert read_batch(tmp_path / "diverged-batch-000001.npz").number == 1


def test_the_count_survives_a_checkpoint(model: Path, tmp_path: Path) -> None:
    run = learner(model)
    run.step(batch(0, math.nan))
    run.save_state(tmp_path)
    resumed = learner(model, tmp_path / "adapter")
    resumed.load_state(tmp_path)
    with pytest.raises(DivergedError, match="2 steps in a row"):
        resumed.step(batch(1, math.nan))


def test_a_batch_file_holds_every_field_of_every_sequence(tmp_path: Path) -> None:
    written = batch(7, math.nan)
    read = read_batch(write_batch(tmp_path / "batch.npz", written))
    assert (read.number, read.metrics) == (7, {"rollout/reward": 0.5})
    for ours, theirs in zip(read.sequences, written.sequences, strict=True):
        np.testing.assert_equal(asdict(ours), asdict(theirs))
        assert ours.advantages.dtype == np.float32
    assert [path.name for path in tmp_path.iterdir()] == ["batch.npz"]


def test_a_batch_without_sequences_is_a_batch(tmp_path: Path) -> None:
    assert read_batch(write_batch(tmp_path / "batch.npz", TrainBatch(3, (), {}))) == TrainBatch(3, (), {})


@pytest.mark.parametrize("content", [None, b"not a zip", b""])
def test_what_is_not_a_batch_file_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "batch.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RunError, match="not a training batch") as error:
        read_batch(path)
    assert "\n" not in str(error.value)
