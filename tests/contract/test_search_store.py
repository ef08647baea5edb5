"""Search and tree store agree: searched trees are trees to the store, and a build goes on where its commits ended."""

from pathlib import Path

import numpy as np
import pytest
from treeopo_storage import MemoryTreeStore, StoreMeta, TreeWriter, create_store, open_store, open_writer

from treeopo.engines.scripted import CharTokenizer, ScriptedEngine, TreeWorld
from treeopo.errors import EngineDeadError
from treeopo.records import Problem
from treeopo.search.build import build_trees
from treeopo.search.settings import SearchSettings

TOKENIZE = CharTokenizer()
WORLD = TreeWorld(branching=4, depth=3, success=lambda letters: 0.5)
PROBLEMS = [Problem(f"p{index}", WORLD.question, "1") for index in range(20)]
META = StoreMeta(tokenizer_fingerprint="characters", teacher="scripted")


async def build(writer: TreeWriter, settings: SearchSettings, engine: ScriptedEngine) -> None:
    await build_trees(
        PROBLEMS,
        writer.problem_count,
        lambda problem: TOKENIZE.encode(problem.question),
        engine,
        WORLD.grade,
        TOKENIZE,
        settings,
        seed=0,
        commit=writer.append,
        concurrency=4,
        commit_every=6,
    )


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("branching", [1, 5])
@pytest.mark.parametrize("max_solution_tokens", [2, 8, 512])
async def test_the_store_accepts_every_searched_tree(depth: int, branching: int, max_solution_tokens: int) -> None:
    store = MemoryTreeStore(META)
    settings = SearchSettings(depth=depth, branching=branching, max_solution_tokens=max_solution_tokens)
    with store.open_writer() as writer:
        await build(writer, settings, ScriptedEngine(WORLD))
    assert store.open_store().problem_ids() == [problem.id for problem in PROBLEMS]


async def test_a_build_that_died_goes_on_at_the_commit_record_and_ends_with_the_same_store(tmp_path: Path) -> None:
    for name, failures in {"once": {}, "twice": {200: EngineDeadError("gone")}}.items():
        create_store(tmp_path / name, META)
        with open_writer(tmp_path / name) as writer:
            if failures:
                with pytest.raises(EngineDeadError):
                    await build(writer, SearchSettings(), ScriptedEngine(WORLD, failures=failures))
                assert 0 < writer.problem_count < len(PROBLEMS)
        with open_writer(tmp_path / name) as writer:
            await build(writer, SearchSettings(), ScriptedEngine(WORLD))
    once, twice = open_store(tmp_path / "once"), open_store(tmp_path / "twice")
    assert once.problem_ids() == twice.problem_ids() == [problem.id for problem in PROBLEMS]
    for left, right in zip(once.problems(0, 20), twice.problems(0, 20), strict=True):
        assert left.texts == right.texts
        np.testing.assert_array_equal(left.token_ids, right.token_ids)
        np.testing.assert_array_equal(left.visits, right.visits)
