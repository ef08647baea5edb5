"""What each batch may know of the student's outcomes, and that a checkpoint gives it back bit by bit."""

from pathlib import Path

import numpy as np
import pytest
from treeopo_storage import TreeStore

from treeopo.errors import RunError
from treeopo.records import Completion, FinishReason, IntArray, Outcomes, Prompt, PromptGroup, Rollout, RolloutGroup
from treeopo.rollout.memory import MEMORY_FILE, OutcomeMemory
from treeopo.rollout.settings import MemorySettings, RolloutSettings

TOKENS: IntArray = np.array([1], np.int32)
SAID = Completion(TOKENS, np.zeros(1, np.float32), TOKENS, "", FinishReason.STOP)


def settings(eta: int, retention: float = 1.0) -> RolloutSettings:
    return RolloutSettings(max_staleness=eta, memory=MemorySettings(retention=retention))


def group(
    problem: int, outcomes: list[tuple[int, float]], extra: list[tuple[int, float]] | None = None
) -> RolloutGroup:
    def rollouts(pairs: list[tuple[int, float]]) -> tuple[Rollout, ...]:
        return tuple(Rollout(Prompt(node, TOKENS, 0, 1, True), SAID, reward, 0, 0) for node, reward in pairs)

    drawn = PromptGroup(0, problem, np.array([-1], np.int32), ())
    return RolloutGroup(drawn, rollouts(outcomes), rollouts(extra or []))


def total(outcomes: Outcomes) -> tuple[float, float]:
    return float(outcomes.total.sum()), float(outcomes.success.sum())


@pytest.mark.parametrize("eta", [0, 1, 3])
def test_a_batch_knows_the_batches_up_to_b_minus_eta_minus_1_even_where_later_ones_are_done(
    searched_store: TreeStore, eta: int
) -> None:
    memory = OutcomeMemory(searched_store.structure(), settings(eta), steps=20)
    for batch in range(20):
        assert total(memory.known(batch).outcomes) == (max(0, batch - eta), max(0, batch - eta))
        memory.record(batch, [group(0, [(0, 1.0)])])


def test_an_outcome_counts_at_its_own_node_and_extra_rollouts_count_too(searched_store: TreeStore) -> None:
    structure = searched_store.structure()
    memory = OutcomeMemory(structure, settings(0), steps=4)
    memory.record(0, [group(2, [(0, 1.0), (1, 0.0)], extra=[(1, 1.0), (1, 0.5)]), group(0, [(0, 0.0)])])
    outcomes, first = memory.known(1).outcomes, structure.first_node
    assert outcomes.total[[first[2], first[2] + 1, first[0]]].tolist() == [1, 3, 1]
    assert outcomes.success[[first[2], first[2] + 1, first[0]]].tolist() == [1, 1.5, 0]
    assert total(outcomes) == (5, 2.5)


def test_old_outcomes_fade(searched_store: TreeStore) -> None:
    memory = OutcomeMemory(searched_store.structure(), settings(0, retention=0.5), steps=4)
    memory.record(0, [group(0, [(0, 1.0)] * 8)])
    memory.record(1, [group(0, [(0, 0.0)] * 8)])
    assert total(memory.known(2).outcomes) == (8 * 0.25 + 8 * 0.5, 8 * 0.25)


def test_progress_is_the_share_of_the_runs_steps(searched_store: TreeStore) -> None:
    memory = OutcomeMemory(searched_store.structure(), settings(1), steps=8)
    assert [memory.known(batch).progress for batch in (0, 1)] == [0, 0.125]


@pytest.mark.parametrize("eta", [0, 1, 2])
@pytest.mark.parametrize("started", [0, 1])
def test_a_memory_that_is_resumed_knows_what_the_other_knew_to_the_last_bit(
    searched_store: TreeStore, tmp_path: Path, eta: int, started: int
) -> None:
    """The checkpoint is taken while the batches that version permits are under way, some of them finished."""
    structure, random = searched_store.structure(), np.random.default_rng(0)
    whole = OutcomeMemory(structure, settings(eta, 0.7), steps=30)
    expected, ready = [], -1
    for version in range(12):
        while ready < version + eta:
            ready += 1
            expected.append(whole.known(ready).success.tobytes())
        done = [(int(random.integers(6)), float(random.random() < 0.5)) for _ in range(8)]
        whole.record(version, [group(int(random.integers(6)), done)])
        if started and version + 1 <= ready:
            whole.record(version + 1, [group(0, [(0, 1.0)])])  # finished early; made anew by whoever resumes
        if version == 8:
            whole.snapshot(version + 1)(tmp_path)
    again = OutcomeMemory(structure, settings(eta, 0.7), steps=30)
    again.resume(tmp_path, 9)
    for batch in range(9, 9 + eta + 1):
        assert again.known(batch).success.tobytes() == expected[batch], batch


def test_a_run_that_had_no_memory_begins_one_where_it_goes_on(searched_store: TreeStore, tmp_path: Path) -> None:
    memory = OutcomeMemory(searched_store.structure(), settings(2), steps=9)
    memory.resume(tmp_path, 5)
    for batch in (5, 6, 7):
        assert total(memory.known(batch).outcomes) == (0, 0)
        memory.record(batch, [group(0, [(0, 1.0)])])
    assert total(memory.known(8).outcomes) == (1, 1)


def test_a_memory_of_another_store_and_a_torn_file_are_refused_in_one_line(
    searched_store: TreeStore, tmp_path: Path
) -> None:
    memory = OutcomeMemory(searched_store.structure(), settings(0), steps=9)
    state = memory.state(0)
    with pytest.raises(RunError, match="resume it with the store that it began with"):
        memory.restore({**state, "nodes": np.array(7)}, 0)
    memory.snapshot(0)(tmp_path)
    whole = (tmp_path / MEMORY_FILE).read_bytes()
    (tmp_path / MEMORY_FILE).write_bytes(whole[:-40])
    with pytest.raises(RunError, match=r"memory.npz: cannot be read .* from the checkpoint before"):
        memory.resume(tmp_path, 0)
