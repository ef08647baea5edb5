"""Any batches of any valid trees come back as they were, from memory and from disk alike."""

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from treeopo_storage import MemoryTreeStore, ProblemTree, StoreMeta, create_store, open_store, open_writer
from treeopo_storage.conformance import VOCABULARY, assert_same_tree, random_tree
from treeopo_storage.invariants import find_violation
from treeopo_storage.packing import pack, unpack
from treeopo_storage.streaming import problem_blocks

from tests.profiles import examples

META = StoreMeta("0123456789abcdef", "teacher", vocabulary_size=VOCABULARY)
SEEDS = st.lists(st.integers(0, 10_000), min_size=1, max_size=12, unique=True)


def trees_of(seeds: list[int]) -> list[ProblemTree]:
    return [random_tree(f"problem {seed}", seed) for seed in seeds]


@given(SEEDS)
def test_packing_loses_nothing(seeds: list[int]) -> None:
    trees = trees_of(seeds)
    columns = pack(trees)
    assert find_violation(columns, VOCABULARY) is None
    for ours, theirs in zip(unpack(columns), trees, strict=True):
        assert_same_tree(ours, theirs)


@given(SEEDS, st.lists(st.integers(1, 4), min_size=12, max_size=12))
@examples(0.05)
def test_memory_and_disk_agree_whatever_the_batches(seeds: list[int], sizes: list[int]) -> None:
    trees = trees_of(seeds)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "trees.zarr"
        create_store(path, META)
        memory = MemoryTreeStore(META)
        with open_writer(path) as on_disk, memory.open_writer() as in_memory:
            start = 0
            for size in sizes:
                on_disk.append(trees[start : start + size])
                in_memory.append(trees[start : start + size])
                start += size
        disk, reference = open_store(path), memory.open_store()
        assert disk.problem_ids() == reference.problem_ids() == [tree.id for tree in trees]
        for i, tree in enumerate(trees):
            assert_same_tree(disk.problem(i), tree)
            assert_same_tree(reference.problem(i), tree)
            node = tree.node_count - 1
            np.testing.assert_array_equal(disk.prefix_tokens(i, node), reference.prefix_tokens(i, node))


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 100))
def test_blocks_cover_every_problem_once_within_their_size(nodes: list[int], size: int) -> None:
    first_node = np.cumsum([0, *nodes])
    blocks = list(problem_blocks(first_node, size))
    assert [problem for start, stop in blocks for problem in range(start, stop)] == list(range(len(nodes)))
    for start, stop in blocks:
        assert stop == start + 1 or first_node[stop] - first_node[start] <= size
