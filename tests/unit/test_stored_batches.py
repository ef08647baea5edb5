"""Batches from a store: every trace once an epoch, solutions as the teacher wrote them, steps with their gains."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from treeopo_storage import MemoryTreeStore, StoreMeta, TreeStore

from treeopo.errors import RunError
from treeopo.records import FloatArray, TokenColumn, TrainSequence
from treeopo.rollout.epochs import Epochs
from treeopo.rollout.settings import RolloutSettings
from treeopo.rollout.solutions import SolutionBatches, SolvedTraces
from treeopo.rollout.traces import Traces
from treeopo.rollout.valued_steps import ValuedStepBatches, node_values, valued_sequence

SETTINGS = RolloutSettings(group_size=4, batch_size=8)
EOS = 0


def test_every_item_comes_once_an_epoch_whatever_the_batch_size() -> None:
    epochs = Epochs(10, 4, seed=1)
    seen = [item for number in range(10) for item in epochs.batch(number)]
    for epoch in range(4):
        assert sorted(seen[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert seen[:10] != seen[10:20]


def test_a_batch_may_be_larger_than_the_data() -> None:
    assert Counter(Epochs(3, 8, seed=1).batch(0)).most_common(1)[0][1] == 3


def test_batches_are_the_same_in_any_order_and_differ_by_seed() -> None:
    forwards, backwards = Epochs(50, 8, seed=1), Epochs(50, 8, seed=1)
    expected = [forwards.batch(number) for number in range(20)]
    assert [backwards.batch(number) for number in reversed(range(20))] == expected[::-1]
    assert Epochs(50, 8, seed=2).batch(0) != expected[0]


async def test_sft_learns_the_solved_traces_from_the_question_on(searched_store: TreeStore) -> None:
    traces = Traces(searched_store, SETTINGS, solved_only=True)
    trees = searched_store.problems(0, 6)
    solved = [tuple(tree.prefix_tokens(n)) for tree in trees for n in np.flatnonzero(tree.reward == 1)]
    assert len(traces) == len(solved)
    solutions = SolutionBatches(SolvedTraces(traces, [EOS]), SETTINGS, seed=0)
    rows = [row for number in range(len(traces)) for row in (await solutions.batch(number)).sequences]  # 8 epochs
    assert Counter(tuple(row.token_ids) for row in rows) == Counter(
        8 * solved
    )  # the scripted teacher ends its texts itself
    assert {row.prefix_length for row in rows} == {trees[0].token_offsets[1]}


def test_a_trace_that_its_answer_ended_is_closed_by_the_first_token_that_ends_an_answer(
    searched_store: TreeStore,
) -> None:
    traces = Traces(searched_store, SETTINGS, solved_only=True)
    other = SolvedTraces(traces, [77, 78])
    assert all(other[index].solution_ids[-1] == 77 for index in range(len(other)))
    assert all((other[index].solution_ids[:-1] != 77).all() for index in range(len(other)))
    either = SolvedTraces(traces, [77, EOS])  # the scripted teacher ends its texts by EOS
    assert all(either[index].solution_ids[-1] == EOS for index in range(len(either)))


def test_a_store_without_a_solved_trace_is_one_clear_line(searched_store: TreeStore) -> None:
    with pytest.raises(RunError, match=r"no solved trace to learn from \(\d+ are too long\)") as error:
        Traces(searched_store, RolloutSettings(max_prompt_tokens=1, max_sequence_tokens=2), solved_only=True)
    assert "\n" not in str(error.value)


def test_the_gains_of_a_trace_add_up_to_its_reward_minus_the_root_s_value(searched_store: TreeStore) -> None:
    for tree in searched_store.problems(0, 6):
        values = node_values(tree)
        assert ((values >= 0) & (values <= 1)).all()
        for leaf in np.flatnonzero(tree.terminal):
            path = tree.path(int(leaf))
            row = valued_sequence(tree, path, 3)
            starts = row.extras[TokenColumn.STEP_START] == 1
            assert starts.sum() == len(path) - 1
            assert row.extras[TokenColumn.GAIN][starts].sum() == pytest.approx(tree.reward[leaf] - values[0], abs=1e-6)
            assert np.array_equal(row.token_ids, tree.prefix_tokens(int(leaf)))
            begins = row.prefix_length + np.flatnonzero(starts)
            assert begins.tolist() == np.cumsum([np.diff(tree.token_offsets)[node] for node in path])[:-1].tolist()


async def test_the_reference_is_asked_once_for_each_trace(searched_store: TreeStore) -> None:
    asked: list[tuple[int, ...]] = []

    async def reference(rows: Sequence[TrainSequence]) -> list[FloatArray]:
        asked.extend(tuple(row.token_ids) for row in rows)
        return [np.full(row.completion_length, -float(row.token_ids.sum()), np.float32) for row in rows]

    traces = Traces(searched_store, SETTINGS, solved_only=False)
    batches = ValuedStepBatches(traces, reference, SETTINGS, seed=0)
    rows = [row for number in range(3 * len(traces) // 8) for row in (await batches.batch(number)).sequences]
    assert len(asked) == len(traces)
    assert all((row.extras[TokenColumn.REFERENCE] == -float(row.token_ids.sum())).all() for row in rows)


def test_a_store_of_questions_alone_has_no_trace() -> None:
    store = MemoryTreeStore(StoreMeta("characters", "t")).open_store()
    with pytest.raises(RunError, match="no trace to learn from"):
        Traces(store, SETTINGS, solved_only=False)
