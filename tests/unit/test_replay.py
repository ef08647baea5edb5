"""Replayed completions are the teacher's own, and their importance-weighted gradient is the student's."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from treeopo_storage import Action, MemoryTreeStore, ProblemTree, StoreMeta, TreeStore

from treeopo.advantage import AdvantageSettings
from treeopo.engines.scripted import CharTokenizer, ScriptedEngine, TreeWorld
from treeopo.errors import RunError
from treeopo.records import Prompt, PromptGroup
from treeopo.rollout.batches import assemble
from treeopo.rollout.replay import ReplayBatches, find_continuations
from treeopo.rollout.sampling.names import StartStates
from treeopo.rollout.settings import RolloutSettings
from treeopo.search.problem import search_problem
from treeopo.search.settings import SearchSettings
from treeopo.search.tree import GrowingTree

SETTINGS = RolloutSettings(group_size=4, batch_size=8)

# A completion is a step (3 of them) and a rest (2): two tokens over a vocabulary of five.
TEACHER_STEP, TEACHER_REST = np.array([0.7, 0.2, 0.1]), np.array([[0.6, 0.4], [0.5, 0.5], [0.9, 0.1]])
STUDENT_STEP, STUDENT_REST = np.array([0.3, 0.3, 0.4]), np.array([[0.2, 0.8], [0.5, 0.5], [0.4, 0.6]])
REWARD = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])


def replay(store: TreeStore, settings: RolloutSettings = SETTINGS) -> ReplayBatches:
    return ReplayBatches(
        store, partial(assemble, settings=AdvantageSettings()), settings, 0, StartStates.UNIFORM, steps=100
    )


def store_of(said: Sequence[tuple[int, int]]) -> TreeStore:
    """What a store keeps of these (step, rest) tries at the root: each step once, with the rest that followed it."""
    kept = dict(reversed(said))
    parent, action, tokens, logprobs, reward = [-1], [Action.ROOT], [[9]], [[np.nan]], [np.nan]
    for step, rest in kept.items():
        parent += [0, len(parent)]
        action += [Action.STEP, Action.SOLUTION]
        tokens += [[step], [3 + rest]]
        logprobs += [[np.log(TEACHER_STEP[step])], [np.log(TEACHER_REST[step, rest])]]
        reward += [np.nan, REWARD[step, rest]]
    P = len(parent)
    tree = ProblemTree(
        id="p",
        question="q",
        answer="1",
        parent=np.array(parent, np.int32),
        depth=np.array([0] + [1, 2] * len(kept), np.int32),
        visits=np.array([len(said)] + [1] * (P - 1), np.int32),
        value_sum=np.zeros(P),
        terminal=~np.isnan(reward),
        reward=np.array(reward, np.float32),
        action=np.array(action, np.int8),
        token_ids=np.concatenate(tokens).astype(np.int32),
        token_offsets=np.arange(P + 1),
        teacher_logprobs=np.concatenate(logprobs).astype(np.float32),
        texts=("x",) * P,
    )
    store = MemoryTreeStore(StoreMeta("characters", "t", {"search": {"branching": len(said)}}))
    with store.open_writer() as writer:
        writer.append([tree])
    return store.open_store()


def gradient(step: int, rest: int) -> np.ndarray:
    """Of log pi_theta(step, rest) with respect to the logits of the first step (3,) and of each rest (3, 2)."""
    first = np.eye(3)[step] - STUDENT_STEP
    second = np.zeros((3, 2))
    second[step] = np.eye(2)[rest] - STUDENT_REST[step]
    return np.concatenate([first, second.ravel()])


def expected_estimate(said: Sequence[tuple[int, int]]) -> np.ndarray:
    """What replay gives for this store, exactly: over its draws, the weighted gradient of each completion."""
    store = store_of(said)
    found = find_continuations(store, 100)
    tree = store.problem(0)
    children = np.flatnonzero(tree.parent == 0)
    times = found.times_P[children]
    estimate = np.zeros(9)
    for child, share in zip(children, times / times.sum(), strict=True):
        step, rest = int(tree.token_ids[child]), int(tree.token_ids[child + 1]) - 3
        teacher = np.exp(tree.teacher_logprobs[child : child + 2].astype(float).sum())
        ratio = STUDENT_STEP[step] * STUDENT_REST[step, rest] / teacher
        weight = times.sum() / found.tries_P[0]
        estimate += share * weight * ratio * REWARD[step, rest] * gradient(step, rest)
    return estimate


@pytest.mark.parametrize("tries", [1, 2, 3])
def test_the_weighted_gradient_is_the_students_policy_gradient_exactly(tries: int) -> None:
    """Enumerated: every sequence of tries the teacher could have made, every draw of what the store kept of it."""
    pairs = list(product(range(3), range(2)))
    probability = {pair: TEACHER_STEP[pair[0]] * TEACHER_REST[pair] for pair in pairs}
    total = np.zeros(9)
    for said in product(pairs, repeat=tries):
        total += np.prod([probability[pair] for pair in said]) * expected_estimate(said)
    exact = sum(STUDENT_STEP[s] * STUDENT_REST[s, r] * REWARD[s, r] * gradient(s, r) for s, r in pairs)
    np.testing.assert_allclose(total, exact, rtol=1e-6, atol=1e-8)


def test_draws_follow_how_often_the_teacher_is_expected_to_have_said_a_step() -> None:
    store = store_of([(0, 0), (1, 0), (0, 0)])
    replayed = replay(store)
    prompt = Prompt(0, np.array([9], np.int32), 0, 1, True)
    steps = []
    for number in range(4000):
        rollout, weight = replayed.replay(PromptGroup(number, 0, np.array([-1]), (prompt,)), prompt, 0, 0)
        steps.append(rollout.completion.token_ids[0])
    times = np.array([3 * p / (1 - (1 - p) ** 3) for p in TEACHER_STEP[:2]])
    assert abs(np.mean(np.array(steps) == 0) - times[0] / times.sum()) < 0.03
    assert weight == pytest.approx(times.sum() / 3, rel=1e-6)


async def test_a_batch_depends_on_its_number_alone_and_carries_the_stored_words(searched_store: TreeStore) -> None:
    forwards, backwards = replay(searched_store), replay(searched_store)
    batches = [await forwards.batch(number) for number in range(4)]
    again = [await backwards.batch(number) for number in reversed(range(4))][::-1]
    for one, other in zip(batches, again, strict=True):
        for a, b in zip(one.sequences, other.sequences, strict=True):
            assert np.array_equal(a.token_ids, b.token_ids)
            assert np.array_equal(a.behaviour_logprobs, b.behaviour_logprobs)
            assert np.array_equal(a.advantages, b.advantages)
    prefixes = {tuple(tree.prefix_tokens(n)): tree.reward[n]
                for tree in searched_store.problems(0, 6) for n in np.flatnonzero(tree.terminal)}  # fmt: skip
    assert all(tuple(row.token_ids) in prefixes for batch in batches for row in batch.sequences)
    assert all((row.behaviour_logprobs <= 0).all() for batch in batches for row in batch.sequences)


def test_only_what_was_said_in_one_go_is_replayed(searched_store: TreeStore) -> None:
    """A step tried there, then what the teacher went on to say: never a path that UCT chose."""
    found = find_continuations(searched_store, 100)
    first = searched_store.structure().first_node
    for problem in range(searched_store.problem_count):
        tree = searched_store.problem(problem)
        for node in range(1, tree.node_count):
            last = int(found.last_P[first[problem] + node] - first[problem])
            path = tree.path(last)
            assert tree.terminal[last]
            assert all(tree.action[step] == Action.SOLUTION for step in path[path.index(node) + 1 :])


def test_the_number_of_tries_is_that_of_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no node is exhausted: a node is tried once a visit, until its tries are spent."""
    grown: list[GrowingTree] = []
    freeze = GrowingTree.freeze

    def note(tree: GrowingTree, *rest: Any) -> ProblemTree:
        grown.append(tree)
        return freeze(tree, *rest)

    monkeypatch.setattr(GrowingTree, "freeze", note)
    world = TreeWorld(branching=12, depth=4, success=lambda letters: 0.5)
    settings = SearchSettings(rollouts=16, depth=5, branching=3)
    problem = world.problem("p")
    prompt = CharTokenizer().encode(problem.question)
    tree = asyncio.run(
        search_problem(problem, prompt, ScriptedEngine(world), world.grade, CharTokenizer(), settings, seed=0)
    )
    store = MemoryTreeStore(StoreMeta("characters", "t", {"search": {"branching": settings.branching}}))
    with store.open_writer() as writer:
        writer.append([tree])
    found = find_continuations(store.open_store(), 100)
    inner = ~tree.terminal
    assert found.tries_P[inner].tolist() == np.array(grown[0].tries_P)[inner].tolist()


def without_logprobs(tree: ProblemTree, nodes: Sequence[int]) -> ProblemTree:
    logprobs = tree.teacher_logprobs.copy()
    for node in nodes:
        logprobs[tree.token_offsets[node] : tree.token_offsets[node + 1]] = np.nan
    return replace(tree, teacher_logprobs=logprobs)


def stored(trees: Sequence[ProblemTree], search: Mapping[str, object] = MappingProxyType({})) -> TreeStore:
    store = MemoryTreeStore(StoreMeta("characters", "t", {"search": {"branching": 5, **search}}))
    with store.open_writer() as writer:
        writer.append(trees)
    return store.open_store()


async def test_continuations_without_log_probabilities_are_left_out_and_counted(searched_store: TreeStore) -> None:
    trees = searched_store.problems(0, 6)
    leaf = int(np.flatnonzero(trees[0].terminal)[0])
    replayed = replay(stored([without_logprobs(trees[0], [leaf]), *trees[1:]]))
    assert replayed.found.unknown >= 1
    batches = [await replayed.batch(number) for number in range(6)]
    assert all(np.isfinite(row.behaviour_logprobs).all() for batch in batches for row in batch.sequences)


def test_a_store_with_nothing_to_replay_is_one_clear_line(searched_store: TreeStore) -> None:
    trees = [without_logprobs(tree, range(1, tree.node_count)) for tree in searched_store.problems(0, 6)]
    with pytest.raises(RunError, match=r"no teacher continuation to replay: \d+ lack log-probabilities") as error:
        find_continuations(stored(trees), 100)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("search", "complaint"),
    [({"merge": "text"}, "stand for other wordings"), ({"actions": ["step", "rephrase"]}, "under the plain prompt")],
)
def test_a_store_whose_steps_are_no_samples_of_the_teacher_is_refused(
    searched_store: TreeStore, search: dict[str, object], complaint: str
) -> None:
    with pytest.raises(RunError, match=complaint):
        find_continuations(stored(searched_store.problems(0, 6), search), 100)


def test_what_would_not_fit_is_left_out_and_counted() -> None:
    """The question is one token; from the root two follow, from each of its two steps one."""
    said = [(0, 0), (1, 0)]
    assert find_continuations(store_of(said), 3).too_long == 0
    with pytest.raises(RunError, match="4 are longer than 2 tokens"):
        find_continuations(store_of(said), 2)
