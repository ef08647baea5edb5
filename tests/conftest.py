"""Shared by all tests: a store searched with the scripted engine, and random models of real architectures."""

import asyncio
import os

import pytest
from treeopo_storage import MemoryTreeStore, StoreMeta, TreeStore

from tests.profiles import load_profile
from treeopo.engines.scripted import CharTokenizer, ScriptedEngine, TreeWorld
from treeopo.search.problem import search_problem
from treeopo.search.settings import SearchSettings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two spinning threads a process are slower than one on small machines
load_profile()

WORLD = TreeWorld(branching=2, depth=3, success=lambda letters: 0.8 if letters[0] == "a" else 0.3)


@pytest.fixture(scope="session")
def world() -> TreeWorld:
    return WORLD


@pytest.fixture(scope="session")
def searched_store() -> TreeStore:
    """Six problems of `WORLD`, searched: trees of depth 3 with right and wrong leaves."""
    store = MemoryTreeStore(StoreMeta(tokenizer_fingerprint="characters", teacher="scripted"))

    async def search() -> None:
        with store.open_writer() as writer:
            for index in range(6):
                problem = WORLD.problem(f"p{index}")
                tree = await search_problem(
                    problem,
                    CharTokenizer().encode(problem.question),
                    ScriptedEngine(WORLD),
                    WORLD.grade,
                    CharTokenizer(),
                    SearchSettings(rollouts=12, depth=4),
                    seed=index,
                )
                writer.append([tree])

    asyncio.run(search())
    return store.open_store()


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several processes (-n 2) one starts the engines, one after the other, and the others take whole files."""
    for item in items:
        group = "engine" if item.get_closest_marker("engine") else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))
