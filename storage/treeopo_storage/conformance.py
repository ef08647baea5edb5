"""The proof that an adapter keeps the promises of `treeopo_storage.protocol`. Inherit it in a test module:

class TestMyStore(TreeStoreConformance):
    def create(self, meta): ...        # and open_writer, open_store

It needs pytest. `random_tree` makes valid trees of any size from a seed.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import pytest

from treeopo_storage.errors import StoreLockedError, TreeDataError, WriterClosedError
from treeopo_storage.protocol import TreeStore, TreeWriter
from treeopo_storage.schema import NO_PARENT, Action, ProblemTree, StoreMeta

VOCABULARY = 1000


def random_tree(
    problem_id: str,
    seed: int,
    *,
    nodes: int | None = None,
    step_tokens: int = 4,
    prompt_tokens: int = 6,
    vocabulary: int = VOCABULARY,
) -> ProblemTree:
    """A valid tree, a pure function of its arguments: `nodes` nodes (1 to 30 if None), about `step_tokens` a step."""
    rng = np.random.default_rng(seed)
    P = int(rng.integers(1, 31)) if nodes is None else nodes
    parent = np.array([NO_PARENT, *(int(rng.integers(max(0, p - 6), p)) for p in range(1, P))], np.int32)
    depth, own, visits = np.zeros(P, np.int32), rng.integers(1, 4, P), np.zeros(P, np.int32)
    for p in range(1, P):
        depth[p] = depth[parent[p]] + 1
    for p in reversed(range(P)):
        visits[p] += own[p]
        if p:
            visits[parent[p]] += visits[p]
    terminal = ~np.isin(np.arange(P), parent)
    lengths = np.array([prompt_tokens, *rng.integers(1, 2 * step_tokens, P - 1)], np.int64)
    T = int(lengths.sum())
    logprobs = -rng.exponential(1.0, T).astype(np.float32)
    logprobs[:prompt_tokens] = np.nan
    words = np.array(["so", "12", "π", "then", "= 7", "日", "half", "𝔸"])
    return ProblemTree(
        problem_id,
        question=f"What is {seed}?",
        answer=str(seed),
        parent=parent,
        depth=depth,
        visits=visits,
        value_sum=visits * rng.random(P),
        terminal=terminal,
        reward=np.where(terminal, rng.integers(0, 2, P), np.nan).astype(np.float32),
        action=np.array([Action.ROOT, *rng.integers(Action.STEP, Action.SOLUTION + 1, P - 1)], np.int8),
        token_ids=rng.integers(0, vocabulary, T, dtype=np.int32),
        token_offsets=np.concatenate([[0], np.cumsum(lengths)]),
        teacher_logprobs=logprobs,
        texts=tuple(" ".join(rng.choice(words, length)) for length in lengths),
    )


def assert_same_tree(actual: ProblemTree, expected: ProblemTree) -> None:
    """Every field equal, array types included."""
    for field in fields(ProblemTree):
        ours, theirs = getattr(actual, field.name), getattr(expected, field.name)
        if isinstance(theirs, np.ndarray):
            assert ours.dtype == theirs.dtype, field.name
            np.testing.assert_array_equal(ours, theirs, err_msg=f"{expected.id}: {field.name}")
        else:
            assert ours == theirs, field.name


class TreeStoreConformance(ABC):
    """Each test starts from nothing; subclasses say how a store is created, written and read."""

    meta = StoreMeta("0123456789abcdef", "teacher", {"rollouts": 16, "depth": 5}, vocabulary_size=VOCABULARY)

    @abstractmethod
    def create(self, meta: StoreMeta) -> None: ...

    @abstractmethod
    def open_writer(self) -> TreeWriter: ...

    @abstractmethod
    def open_store(self) -> TreeStore: ...

    def filled(self, batches: Sequence[Sequence[ProblemTree]]) -> TreeStore:
        self.create(self.meta)
        with self.open_writer() as writer:
            for batch in batches:
                writer.append(batch)
        return self.open_store()

    def test_what_was_appended_is_read_back(self) -> None:
        trees = [random_tree(f"p{seed}", seed) for seed in range(12)]
        store = self.filled([trees[:1], trees[1:7], [], trees[7:]])
        assert store.problem_count == 12
        assert store.node_count == sum(tree.node_count for tree in trees)
        assert store.token_count == sum(len(tree.token_ids) for tree in trees)
        assert store.problem_ids() == [tree.id for tree in trees]
        assert store.answers() == [tree.answer for tree in trees]
        assert store.meta == self.meta
        for i, tree in enumerate(trees):
            assert_same_tree(store.problem(i), tree)
            assert store.problem_id(i) == tree.id
        for ours, theirs in zip(store.problems(3, 9), trees[3:9], strict=True):
            assert_same_tree(ours, theirs)

    def test_prefixes_are_the_tokens_of_the_path(self) -> None:
        trees = [random_tree(f"p{seed}", seed) for seed in range(5)]
        store = self.filled([trees])
        for i, tree in enumerate(trees):
            for node in range(tree.node_count):
                steps = [tree.token_ids[tree.token_offsets[p] : tree.token_offsets[p + 1]] for p in tree.path(node)]
                np.testing.assert_array_equal(store.prefix_tokens(i, node), np.concatenate(steps))
            lengths = [len(tree.prefix_tokens(node)) for node in range(tree.node_count)]
            np.testing.assert_array_equal(store.prefix_lengths(i), lengths)

    def test_structure_is_the_concatenation_of_the_problems(self) -> None:
        trees = [random_tree(f"p{seed}", seed) for seed in range(6)]
        structure = self.filled([trees[:2], trees[2:]]).structure()
        np.testing.assert_array_equal(structure.first_node, np.cumsum([0, *(tree.node_count for tree in trees)]))
        np.testing.assert_array_equal(structure.problem, np.repeat(range(6), [tree.node_count for tree in trees]))
        for name in ("parent", "depth", "visits", "value_sum", "terminal", "reward", "action"):
            np.testing.assert_array_equal(getattr(structure, name), np.concatenate([getattr(t, name) for t in trees]))
        steps = np.concatenate([np.diff(tree.token_offsets) for tree in trees])
        np.testing.assert_array_equal(np.diff(structure.token_offsets), steps)
        lengths = [len(tree.prefix_tokens(node)) for tree in trees for node in range(tree.node_count)]
        np.testing.assert_array_equal(structure.prefix_lengths, lengths)

    def test_a_problem_without_search_results_is_kept(self) -> None:
        tree = random_tree("alone", 1, nodes=1)
        assert_same_tree(self.filled([[tree]]).problem(0), tree)

    def test_an_empty_store_opens(self) -> None:
        store = self.filled([])
        assert (store.problem_count, store.node_count, store.token_count) == (0, 0, 0)
        assert store.problem_ids() == []
        assert store.problems(0, 0) == []
        assert len(store.structure().prefix_lengths) == 0

    def test_indices_outside_the_snapshot_are_refused(self) -> None:
        store = self.filled([[random_tree("p", 1, nodes=3)]])
        for outside in (-1, 1):
            with pytest.raises(IndexError):
                store.problem(outside)
            with pytest.raises(IndexError):
                store.prefix_tokens(outside, 0)
        for outside in (-1, 3):
            with pytest.raises(IndexError):
                store.prefix_tokens(0, outside)
        with pytest.raises(IndexError):
            store.problems(0, 2)

    def test_a_reader_sees_its_snapshot_until_it_refreshes(self) -> None:
        trees = [random_tree(f"p{seed}", seed) for seed in range(6)]
        self.create(self.meta)
        with self.open_writer() as writer:
            writer.append(trees[:2])
            store = self.open_store()
            structure = store.structure()
            assert not store.refresh()
            writer.append(trees[2:])
            assert store.problem_count == 2
            assert len(structure.parent) == sum(tree.node_count for tree in trees[:2])
            with pytest.raises(IndexError):
                store.problem(2)
            assert_same_tree(store.problem(1), trees[1])
            assert store.refresh()
            assert store.problem_count == 6
            assert len(store.structure().parent) == sum(tree.node_count for tree in trees)
            for i, tree in enumerate(trees):
                assert_same_tree(store.problem(i), tree)

    def test_a_new_writer_continues_where_the_last_one_stopped(self) -> None:
        trees = [random_tree(f"p{seed}", seed) for seed in range(4)]
        self.filled([trees[:2]])
        with self.open_writer() as writer:
            assert writer.problem_count == 2
            assert writer.problem_ids() == {"p0", "p1"}
            writer.append(trees[2:])
            assert writer.problem_count == 4
        store = self.open_store()
        for i, tree in enumerate(trees):
            assert_same_tree(store.problem(i), tree)

    def test_a_second_writer_is_refused(self) -> None:
        self.create(self.meta)
        with self.open_writer(), pytest.raises(StoreLockedError):
            self.open_writer()
        self.open_writer().close()

    def test_a_problem_is_stored_once(self) -> None:
        self.create(self.meta)
        with self.open_writer() as writer:
            writer.append([random_tree("p", 1)])
            with pytest.raises(TreeDataError, match="'p' is already in the store"):
                writer.append([random_tree("q", 2), random_tree("p", 3)])
            with pytest.raises(TreeDataError, match="'r' is already in the store"):
                writer.append([random_tree("r", 2), random_tree("r", 3)])
            writer.append([random_tree("q", 2)])
        assert self.open_store().problem_ids() == ["p", "q"]

    def test_a_token_beyond_the_vocabulary_is_refused_with_its_place(self) -> None:
        self.create(self.meta)
        good, bad = random_tree("good", 1), random_tree("bad", 2, nodes=3)
        bad.token_ids[7] = VOCABULARY
        place = r"'bad': tokens/id of token 7: .* beyond the vocabulary"
        with self.open_writer() as writer, pytest.raises(TreeDataError, match=place):
            writer.append([good, bad])
        assert self.open_store().problem_count == 0

    def test_a_closed_writer_refuses_to_append(self) -> None:
        self.create(self.meta)
        with self.open_writer() as writer:
            pass
        with pytest.raises(WriterClosedError, match="is closed"):
            writer.append([random_tree("p", 1)])

    def test_what_is_read_cannot_be_written_to(self) -> None:
        store = self.filled([[random_tree("p", 1, nodes=3)]])
        with pytest.raises(ValueError, match="read-only"):
            store.problem(0).parent[0] = 5
