"""Batches of rollouts in one call, from what a test cares about."""

from treeopo.ports import Generate
from treeopo.rollout.finishing import Finish, GradeCompletion
from treeopo.rollout.memory import OutcomeMemory
from treeopo.rollout.meter import EngineMeter
from treeopo.rollout.rollouts import Assemble, BatchParts, RolloutBatches
from treeopo.rollout.sampling.groups import GroupSampler
from treeopo.rollout.settings import RolloutSettings


def rollout_batches(
    sampler: GroupSampler,
    engine: Generate,
    grade: GradeCompletion,
    assemble: Assemble,
    settings: RolloutSettings,
    *,
    seed: int = 0,
    meter: EngineMeter | None = None,
    stop: tuple[str, ...] = (),
    steps: int = 100,
    baseline_rollouts: int = 0,
    memory: OutcomeMemory | None = None,
) -> RolloutBatches:
    """Batches as `treeopo.recipes.batches` puts them together. Call it in a running event loop."""
    finish = Finish(engine, grade, settings, seed, meter or EngineMeter(), stop)
    memory = memory or OutcomeMemory(sampler.structure, settings, steps)
    parts = BatchParts(sampler, memory, finish, assemble, baseline_rollouts=baseline_rollouts)
    return RolloutBatches(parts, settings)
