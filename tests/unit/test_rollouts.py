"""What a batch asks the engine for."""

from collections.abc import Sequence

from treeopo_storage import TreeStore

from treeopo.engines.scripted import ScriptedEngine, TreeWorld
from treeopo.records import Completion, FinishReason, PromptGroup, RolloutGroup, TrainBatch
from treeopo.rollout.meter import EngineMeter
from treeopo.rollout.rollouts import RolloutBatches
from treeopo.rollout.sampling.base import GroupSampler
from treeopo.rollout.sampling.names import StartStates
from treeopo.rollout.settings import RolloutSettings

SETTINGS = RolloutSettings(group_size=4, batch_size=8, max_prompt_tokens=20, max_sequence_tokens=60)


async def completions(store: TreeStore, world: TreeWorld, stop: tuple[str, ...]) -> list[Completion]:
    kept: list[Completion] = []

    async def grade(drawn: PromptGroup, completion: Completion) -> float:
        return 1.0

    async def keep(number: int, groups: Sequence[RolloutGroup]) -> TrainBatch:
        kept.extend(rollout.completion for group in groups for rollout in group.rollouts)
        return TrainBatch(number, (), {})

    sampler = GroupSampler(store, SETTINGS, 0, StartStates.ROOT)
    await RolloutBatches(sampler, ScriptedEngine(world), grade, keep, SETTINGS, 0, EngineMeter(), stop).batch(0)
    return kept


async def test_a_completion_also_ends_where_its_prompts_say(searched_store: TreeStore, world: TreeWorld) -> None:
    """With examples before the question a base model goes on to ask itself the next one."""
    free = await completions(searched_store, world, ())
    assert all("####" in completion.text for completion in free)
    stopped = await completions(searched_store, world, ("####",))
    assert all(completion.text.endswith("####") for completion in stopped)
    assert {completion.finish_reason for completion in stopped} == {FinishReason.STOP}
