"""What holds of every searched tree, whatever the teacher, the settings and the seed."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from treeopo_storage import NO_PARENT, Action, ProblemTree

from treeopo.engines.scripted import CharTokenizer, Pieces, ScriptedEngine
from treeopo.records import Problem
from treeopo.search.problem import search_problem
from treeopo.search.settings import SearchSettings

TOKENIZE = CharTokenizer()
PROBLEM = Problem("p", "Q: ", "1")
PROMPT_LENGTH = len(PROBLEM.question)

texts = st.text(alphabet="ab\n#1", min_size=1, max_size=12)
teachers = st.lists(texts, min_size=1, max_size=4)
searches = st.builds(
    SearchSettings,
    rollouts=st.integers(1, 30),
    depth=st.integers(1, 5),
    branching=st.integers(1, 5),
    exploration=st.floats(0, 10),
    exploration_schedule=st.sampled_from(["constant", "linear", "exponential"]),
    max_step_tokens=st.integers(1, 30),
    max_solution_tokens=st.integers(1, 40),
    separator=st.sampled_from(["\n\n", "\n", "ab"]),
    answer_mark=st.sampled_from(["", "#", "##"]),
    merge=st.sampled_from(["tokens", "text"]),
)
seeds = st.integers(0, 2**63 - 1)


async def grade(problem: Problem, text: str) -> float:
    return float("#1" in text)


async def search(phrases: list[str], chosen: SearchSettings, seed: int) -> ProblemTree:
    """Search below a teacher that strings together random phrases."""

    def policy(prompt: str, rng: object, version: int) -> Pieces:
        return [(rng.choice(phrases), -1.0) for _ in range(rng.randint(1, 6))]  # type: ignore[attr-defined]

    prompt_ids = TOKENIZE.encode(PROBLEM.question)
    return await search_problem(PROBLEM, prompt_ids, ScriptedEngine(policy), grade, TOKENIZE, chosen, seed)


def sum_over_children(tree: ProblemTree, values: np.ndarray) -> np.ndarray:
    total = np.zeros(tree.node_count)
    np.add.at(total, tree.parent[1:], values[1:])
    return total


@given(teachers, searches, seeds)
@settings(max_examples=300, deadline=None)
async def test_visits_and_values_are_those_of_the_children_and_of_the_traces_that_ended_there(
    phrases: list[str], chosen: SearchSettings, seed: int
) -> None:
    tree = await search(phrases, chosen, seed)
    ended = np.where(tree.terminal, tree.visits, 0)
    np.testing.assert_array_equal(tree.visits, sum_over_children(tree, tree.visits) + ended)
    rewards = np.where(tree.terminal, np.nan_to_num(tree.reward) * tree.visits, 0)
    np.testing.assert_array_equal(tree.value_sum, sum_over_children(tree, tree.value_sum) + rewards)
    assert (tree.visits >= 1).all()
    assert tree.visits[0] == tree.visits[tree.terminal].sum() <= chosen.rollouts


@given(teachers, searches, seeds)
@settings(max_examples=300, deadline=None)
async def test_the_shape_is_a_tree_within_depth_and_branching_whose_leaves_are_terminal(
    phrases: list[str], chosen: SearchSettings, seed: int
) -> None:
    tree = await search(phrases, chosen, seed)
    assert tree.parent[0] == NO_PARENT
    assert (tree.parent[1:] < np.arange(1, tree.node_count)).all()
    assert tree.depth[0] == 0
    np.testing.assert_array_equal(tree.depth[1:], tree.depth[tree.parent[1:]] + 1)
    assert tree.depth.max() <= chosen.depth
    children = np.bincount(tree.parent[1:], minlength=tree.node_count)
    assert children.max() <= chosen.branching
    np.testing.assert_array_equal(tree.terminal, children == 0)
    np.testing.assert_array_equal(tree.terminal, ~np.isnan(tree.reward))
    assert tree.action[0] == Action.ROOT
    assert set(tree.action[1:]) <= {Action.STEP, Action.SOLUTION}


@given(teachers, searches, seeds)
@settings(max_examples=300, deadline=None)
async def test_siblings_differ_in_tokens_and_steps_end_exactly_at_the_separator(
    phrases: list[str], chosen: SearchSettings, seed: int
) -> None:
    tree = await search(phrases, chosen, seed)
    steps = [tuple(tree.token_ids[lo:hi]) for lo, hi in zip(tree.token_offsets, tree.token_offsets[1:], strict=False)]
    keys = list(zip(tree.parent[1:].tolist(), steps[1:], strict=True))
    assert len(set(keys)) == len(keys)
    for node in range(1, tree.node_count):
        assert steps[node]
        if not tree.terminal[node]:
            assert tree.texts[node].index(chosen.separator) == len(tree.texts[node]) - len(chosen.separator)
        assert len(tree.prefix_tokens(node)) - PROMPT_LENGTH <= chosen.max_solution_tokens


@given(teachers, searches, seeds)
@settings(max_examples=300, deadline=None)
async def test_rewards_are_grades_of_finished_traces_and_zero_of_traces_cut_off(
    phrases: list[str], chosen: SearchSettings, seed: int
) -> None:
    tree = await search(phrases, chosen, seed)
    for node in np.flatnonzero(tree.terminal):
        trace = tree.prefix_tokens(int(node)).tolist()
        text = TOKENIZE.decode(trace)[PROMPT_LENGTH:]
        complete_steps = text.split(chosen.separator)[:-1]
        answered = bool(chosen.answer_mark) and any(chosen.answer_mark in step for step in complete_steps)
        finished = answered or trace[-1] == TOKENIZE.eos_token_id
        assert tree.reward[node] == (await grade(PROBLEM, text) if finished else 0)


@given(teachers, searches, seeds)
@settings(max_examples=300, deadline=None)
async def test_log_probabilities_and_texts_belong_to_the_step_tokens(
    phrases: list[str], chosen: SearchSettings, seed: int
) -> None:
    tree = await search(phrases, chosen, seed)
    known = ~np.isnan(tree.teacher_logprobs)
    np.testing.assert_array_equal(known, np.arange(len(tree.token_ids)) >= PROMPT_LENGTH)
    assert tree.texts == tuple(
        TOKENIZE.decode(tree.token_ids[lo:hi].tolist())
        for lo, hi in zip(tree.token_offsets, tree.token_offsets[1:], strict=False)
    )


@given(teachers, searches, seeds)
@settings(max_examples=150, deadline=None)
async def test_more_rollouts_only_add_to_a_tree(phrases: list[str], chosen: SearchSettings, seed: int) -> None:
    constant = SearchSettings(rollouts=6, depth=chosen.depth, branching=chosen.branching)
    longer = SearchSettings(rollouts=12, depth=chosen.depth, branching=chosen.branching)
    short, long = await search(phrases, constant, seed), await search(phrases, longer, seed)
    assert long.texts[: short.node_count] == short.texts
    assert (long.visits[: short.node_count] >= short.visits).all()
    if short.visits[0] < constant.rollouts:  # exhausted: nothing was left to search
        assert long.texts == short.texts
        np.testing.assert_array_equal(long.visits, short.visits)
