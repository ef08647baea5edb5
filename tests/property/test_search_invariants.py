"""What holds of every searched tree, whatever the teacher, the settings and the seed."""

import asyncio
import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from treeopo_storage import NO_PARENT, Action, ProblemTree

from tests.profiles import examples
from treeopo.engines.scripted import CharTokenizer, Pieces, ScriptedEngine
from treeopo.records import Problem
from treeopo.search.problem import search_problem
from treeopo.search.settings import SearchSettings

TOKENIZE = CharTokenizer()
PROBLEM = Problem("p", "Q: ", "1")
PROMPTED = {Action.SUBQUESTION, Action.REANSWER, Action.REPHRASE}
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
    reward=st.sampled_from(["gold", "vote", "both"]),
    leaves=st.integers(1, 6),
    actions=st.sampled_from(
        [("step", "solution"), ("step", "solution", "subquestion", "reanswer", "rephrase"), ("step", "subquestion")]
    ),
)
seeds = st.integers(0, 2**63 - 1)


async def grade(problem: Problem, text: str) -> float:
    return float("#1" in text)


def final_answer(text: str) -> str:
    return text.rpartition("#")[2][:1].strip("\n") if "#" in text else ""


async def answer_later(text: str) -> str:
    return final_answer(text)


async def search(phrases: list[str], chosen: SearchSettings, seed: int) -> ProblemTree:
    """Search below a teacher that strings together random phrases."""

    def policy(prompt: str, rng: object, version: int) -> Pieces:
        return [(rng.choice(phrases), -1.0) for _ in range(rng.randint(1, 6))]  # type: ignore[attr-defined]

    prompt_ids = TOKENIZE.encode(PROBLEM.question)
    engine = ScriptedEngine(policy)
    return await search_problem(PROBLEM, prompt_ids, engine, grade, TOKENIZE, chosen, seed, answer=answer_later)


def solution(tree: ProblemTree, node: int) -> str:
    return TOKENIZE.decode(tree.prefix_tokens(node).tolist())[PROMPT_LENGTH:]


def finished(tree: ProblemTree, node: int, chosen: SearchSettings) -> bool:
    """It ended by itself: in an answer, or at end of text."""
    complete_steps = solution(tree, node).split(chosen.separator)[:-1]
    answered = bool(chosen.answer_mark) and any(chosen.answer_mark in step for step in complete_steps)
    return answered or int(tree.prefix_tokens(node)[-1]) == TOKENIZE.eos_token_id


def values_of_traces(tree: ProblemTree, chosen: SearchSettings) -> np.ndarray:
    """What one trace that ends in a node is worth, 0 for inner nodes: counted over a list of all the traces."""
    terminals = [int(node) for node in np.flatnonzero(tree.terminal)]
    if chosen.reward == "gold":
        return np.where(tree.terminal, tree.reward, 0)
    answers = {node: final_answer(solution(tree, node)) if finished(tree, node, chosen) else "" for node in terminals}
    traces = [answers[node] for node in terminals for _ in range(tree.visits[node])]
    values = np.zeros(tree.node_count)
    for node in terminals:
        values[node] = traces.count(answers[node]) / len(traces) if answers[node] else 0
    return values


def sum_over_children(tree: ProblemTree, values: np.ndarray) -> np.ndarray:
    total = np.zeros(tree.node_count)
    np.add.at(total, tree.parent[1:], values[1:])
    return total


@given(teachers, searches, seeds)
@examples(3)
async def test_visits_and_values_are_those_of_the_children_and_of_the_traces_that_ended_there(
    phrases: list[str], chosen: SearchSettings, seed: int
) -> None:
    tree = await search(phrases, chosen, seed)
    ended = np.where(tree.terminal, tree.visits, 0)
    np.testing.assert_array_equal(tree.visits, sum_over_children(tree, tree.visits) + ended)
    ended_here = values_of_traces(tree, chosen) * tree.visits
    np.testing.assert_allclose(tree.value_sum, sum_over_children(tree, tree.value_sum) + ended_here, atol=1e-9)
    assert (tree.visits >= 1).all()
    assert tree.visits[0] == tree.visits[tree.terminal].sum() <= chosen.rollouts


@given(teachers, searches, seeds)
@examples(3)
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
    assert set(tree.action[1:]) <= {Action[name.upper()] for name in chosen.actions}
    assert not set(tree.action[tree.depth == chosen.depth]) & PROMPTED


@given(teachers, searches, seeds)
@examples(3)
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
            blanks = rf"(?:{re.escape(chosen.separator)}|\s)*"
            spoken = re.fullmatch(rf"{blanks}(.*?){blanks}", tree.texts[node], re.DOTALL)
            assert spoken is not None
            assert chosen.separator not in spoken[1]
            assert tree.texts[node].endswith(chosen.separator)
        assert len(tree.prefix_tokens(node)) - PROMPT_LENGTH <= chosen.max_solution_tokens


@given(teachers, searches, seeds)
@examples(3)
async def test_rewards_are_grades_of_finished_traces_or_the_majority_and_zero_of_traces_cut_off(
    phrases: list[str], chosen: SearchSettings, seed: int
) -> None:
    tree = await search(phrases, chosen, seed)
    values = values_of_traces(tree, chosen)
    for node in map(int, np.flatnonzero(tree.terminal)):
        if not finished(tree, node, chosen):
            assert tree.reward[node] == 0
        elif chosen.reward != "vote":
            assert tree.reward[node] == await grade(PROBLEM, solution(tree, node))
        elif tree.reward[node] == 1:
            assert values[node] == values.max() > 0
    if chosen.reward == "vote":
        winners = {final_answer(solution(tree, node)) for node in map(int, np.flatnonzero(tree.reward == 1))}
        assert len(winners) == int(values.max() > 0)
        assert "" not in winners


@given(teachers, searches, seeds, seeds)
async def test_a_tree_does_not_depend_on_which_answers_come_first(
    phrases: list[str], chosen: SearchSettings, seed: int, delays: int
) -> None:
    def policy(prompt: str, rng: object, version: int) -> Pieces:
        return [(rng.choice(phrases), -1.0) for _ in range(rng.randint(1, 6))]  # type: ignore[attr-defined]

    engine = ScriptedEngine(policy, sleep=give_way, latency=lambda request: (request.seed ^ delays) % 5)
    prompt_ids = TOKENIZE.encode(PROBLEM.question)
    late = await search_problem(PROBLEM, prompt_ids, engine, grade, TOKENIZE, chosen, seed, answer=answer_later)
    assert engine.peak_in_flight <= chosen.leaves
    prompt = await search(phrases, chosen, seed)
    assert late.texts == prompt.texts
    np.testing.assert_array_equal(late.visits, prompt.visits)
    np.testing.assert_array_equal(late.value_sum, prompt.value_sum)


async def give_way(seconds: float) -> None:
    """To other tasks, that many times: order without waiting."""
    for _ in range(int(seconds * 4)):
        await asyncio.sleep(0)


@given(teachers, searches, seeds)
@examples(2)
async def test_log_probabilities_and_texts_belong_to_the_step_tokens(
    phrases: list[str], chosen: SearchSettings, seed: int
) -> None:
    tree = await search(phrases, chosen, seed)
    known = ~np.isnan(tree.teacher_logprobs)
    action_T = np.repeat(tree.action, np.diff(tree.token_offsets))  # none of those under a prompt of its own was scored
    np.testing.assert_array_equal(known, ~np.isin(action_T, [Action.ROOT, *PROMPTED]))
    assert tree.texts == tuple(
        TOKENIZE.decode(tree.token_ids[lo:hi].tolist())
        for lo, hi in zip(tree.token_offsets, tree.token_offsets[1:], strict=False)
    )


@given(teachers, searches, seeds)
@examples(1.5)
async def test_more_rollouts_only_add_to_a_tree(phrases: list[str], chosen: SearchSettings, seed: int) -> None:
    constant = SearchSettings(rollouts=6, depth=chosen.depth, branching=chosen.branching)
    longer = SearchSettings(rollouts=12, depth=chosen.depth, branching=chosen.branching)
    short, long = await search(phrases, constant, seed), await search(phrases, longer, seed)
    assert long.texts[: short.node_count] == short.texts
    assert (long.visits[: short.node_count] >= short.visits).all()
    if short.visits[0] < constant.rollouts:  # exhausted: nothing was left to search
        assert long.texts == short.texts
        np.testing.assert_array_equal(long.visits, short.visits)
