"""Start states of a user's own, by `package.module:Name`; what cannot be one is one line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from treeopo_storage import TreeStore, open_store

from tests.conftest import WORLD
from tests.killed_run import new_run, prepare
from treeopo.config import TrainConfig, load_config
from treeopo.engines.scripted import ScriptedEngine
from treeopo.engines.settings import Adapters, EngineOptions
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.errors import ConfigError
from treeopo.jobs.train import train
from treeopo.records import Completion, Request
from treeopo.rollout.sampling.groups import GroupSampler
from treeopo.rollout.settings import RolloutSettings

DEEPEST = "examples.sampler:Deepest"


def test_the_example_draws_the_deepest_prefixes_of_one_problem(searched_store: TreeStore) -> None:
    sampler = GroupSampler(searched_store, RolloutSettings(group_size=4, batch_size=8), seed=0, start=DEEPEST)
    for number in range(20):
        group = sampler.draw(number)
        tree = searched_store.problem(group.problem)
        deepest = tree.depth[~tree.terminal].max()
        assert {int(tree.depth[prompt.node]) for prompt in group.prompts} == {deepest}


def test_a_run_starts_its_groups_where_the_example_says(tmp_path: Path) -> None:
    prepare(tmp_path)
    asked: list[int] = []

    class Listening(ScriptedEngine):
        async def generate(self, request: Request) -> Completion:
            asked.append(len(request.token_ids))
            return await super().generate(request)

    async def start_engine(model: str, options: EngineOptions, adapters: Adapters | None) -> ScriptedEngine:
        return Listening(WORLD, ModelTokenizer(model))

    run = new_run(tmp_path, "run", steps=2, **{"rollout.sampling": DEEPEST})
    assert train(run, lambda notice: None, lambda step, metrics: None, start_engine).complete
    structure = open_store(tmp_path / "trees.zarr").structure()
    deepest = np.maximum.reduceat(np.where(structure.terminal, 0, structure.depth), structure.first_node[:-1])
    at_the_deepest = ~structure.terminal & (structure.depth == deepest[structure.problem])
    assert len(asked) == 2 * 8
    assert set(asked) <= set(structure.prefix_lengths[at_the_deepest].tolist())


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("deep", "unknown rollout.sampling 'deep'; use one of uniform, trace, root, depth"),
        ("nowhere:Deepest", "rollout.sampling nowhere:Deepest: importing nowhere failed (ModuleNotFoundError"),
        ("examples.sampler:Widest", "module examples.sampler has no Widest"),
    ],
)
def test_a_sampler_that_cannot_be_had_is_one_line(searched_store: TreeStore, name: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as error:
        GroupSampler(searched_store, RolloutSettings(), seed=0, start=name)
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ({"method": "grpo"}, "rollout.sampling: method grpo starts at the root; leave it out"),
        ({"method": "sft"}, "rollout.sampling: method sft has no groups"),
        ({"advantage.method": "trace"}, "advantage.method trace draws from one trace"),
        ({"rollout.sampling": "deep"}, "unknown rollout.sampling 'deep'; use one of uniform, trace, root"),
    ],
)
def test_start_states_that_a_method_would_ignore_are_refused(flags: dict[str, Any], complaint: str) -> None:
    given = {"output": "o", "rollout.sampling": DEEPEST, **flags}
    with pytest.raises(ConfigError) as error:
        load_config(TrainConfig, file=None, flags=given)
    assert complaint in str(error.value)
