"""The same seed gives the same bits: rollouts, dropout and optimiser included."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from treeopo_storage import TreeStore

from tests.rollout_batches import rollout_batches
from tests.tiny_models import random_qwen2
from treeopo.advantage import AdvantageSettings
from treeopo.engines.scripted import ScriptedEngine, TreeWorld
from treeopo.learner.checkpoints import Checkpoints
from treeopo.learner.losses.policy_gradient import PolicyGradient
from treeopo.learner.settings import LearnerSettings, LoraSettings, OptimizerSettings
from treeopo.learner.spec import LearnerSpec
from treeopo.learner.thread import LearnerThread
from treeopo.records import TrainBatch
from treeopo.rollout.batches import assemble
from treeopo.rollout.pipeline import Metrics, Pipeline, Stages
from treeopo.rollout.sampling.groups import GroupSampler
from treeopo.rollout.sampling.names import StartStates
from treeopo.rollout.settings import RolloutSettings

ROLLOUT = RolloutSettings(group_size=4, batch_size=8, max_prompt_tokens=20, max_sequence_tokens=60, max_staleness=0)
LEARNER = LearnerSettings(
    deterministic=True,
    lora=LoraSettings(rank=4, alpha=8, dropout=0.2),
    optimizer=OptimizerSettings(learning_rate=1e-2),
)


async def trained(
    store: TreeStore, world: TreeWorld, model: Path, directory: Path, seed: int
) -> tuple[bytes, list[float]]:
    """The adapter after three steps of Tree-OPO on a scripted engine, and the losses on the way."""
    spec = LearnerSpec(str(model), LEARNER, lambda policy: [PolicyGradient(LEARNER)], 3, temperature=1.0, seed=seed)
    learner = await LearnerThread.start(spec, Checkpoints(directory / "checkpoints", 1))
    engine, problem, losses = ScriptedEngine(world), world.problem("any"), []
    sampler = GroupSampler(store, ROLLOUT, seed, StartStates.UNIFORM)
    rollouts = rollout_batches(
        sampler, engine, lambda drawn, completion: world.grade(problem, completion.text),
        partial(assemble, settings=AdvantageSettings()), ROLLOUT, seed=seed,
    )  # fmt: skip

    async def learn(batch: TrainBatch) -> Metrics:
        metrics = await learner.step(batch)
        losses.append(metrics["learner/loss"])
        return metrics

    async def on_step(version: int, metrics: Metrics) -> bool:
        return True

    stages = Stages(rollouts.batch, learn, lambda version: engine.publish(version, Path("unused")))
    await Pipeline(stages, 0).run(0, 3, on_step)
    await learner.save_adapter(directory / "adapter")
    learner.close()
    return (directory / "adapter/adapter_model.safetensors").read_bytes(), losses


async def test_two_runs_of_one_seed_are_bit_identical_and_of_two_seeds_are_not(
    searched_store: TreeStore, world: TreeWorld, tmp_path: Path
) -> None:
    model = random_qwen2(tmp_path / "model")
    one, again, other = [
        await trained(searched_store, world, model, tmp_path / name, seed)
        for name, seed in (("one", 0), ("again", 0), ("other", 1))
    ]
    torch.use_deterministic_algorithms(False)
    assert one == again
    assert one[0] != other[0]
    assert one[1] != other[1]


@pytest.mark.parametrize("wanted", [True, False])
async def test_the_switch_reaches_torch(wanted: bool, tmp_path: Path) -> None:
    model = random_qwen2(tmp_path / "model")
    settings = replace(LEARNER, deterministic=wanted)
    spec = LearnerSpec(str(model), settings, lambda policy: [PolicyGradient(settings)], 1, temperature=1.0, seed=0)
    learner = await LearnerThread.start(spec, Checkpoints(tmp_path / "checkpoints", 1))
    learner.close()
    assert torch.are_deterministic_algorithms_enabled() is wanted
    torch.use_deterministic_algorithms(False)
