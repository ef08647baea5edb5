"""Reward by vote: what it sees, who may win, and what it stores."""

import random

import numpy as np
import pytest
from treeopo_storage import ProblemTree

from treeopo.engines.scripted import CharTokenizer, Pieces, ScriptedEngine
from treeopo.errors import ConfigError
from treeopo.problems.graders import load_grader
from treeopo.records import Problem
from treeopo.search.problem import search_problem
from treeopo.search.settings import SearchSettings

PROBLEM = Problem("p", "?", "1")
TOKENIZE = CharTokenizer()
ANSWER = load_grader("number").answer


async def read_answer(text: str) -> str:
    return ANSWER(text)


def teacher(prompt: str, rng: random.Random, version: int) -> Pieces:
    """Answers 2 most often, then 1; about half of its traces end without an answer that can be read."""
    step = [] if "\n" in prompt else [(f"{rng.getrandbits(30)}\n\n", -1.0)]
    return [*step, (rng.choice(["#### 1", "#### 2", "#### 2.0", "who knows", "#### many", "#### ?", ""]), -1.0)]


async def search(gold: str, reward: str) -> ProblemTree:
    async def grade(problem: Problem, text: str) -> float:
        assert reward != "vote", "the gold answer was looked at"
        return float(text.endswith(gold))

    chosen = SearchSettings(rollouts=80, branching=12, reward=reward)  # type: ignore[arg-type]
    engine = ScriptedEngine(teacher)
    return await search_problem(
        PROBLEM, TOKENIZE.encode("?"), engine, grade, TOKENIZE, chosen, seed=3, answer=read_answer
    )


async def test_the_gold_answer_has_no_say_in_a_search_by_vote() -> None:
    one, other, alone = await search("1", "both"), await search("2", "both"), await search("", "vote")
    for tree in (other, alone):
        assert tree.texts == one.texts
        np.testing.assert_array_equal(tree.visits, one.visits)
        np.testing.assert_array_equal(tree.value_sum, one.value_sum)
    assert not np.array_equal(one.reward, other.reward, equal_nan=True)


async def test_both_keeps_grades_as_rewards_beside_the_values_by_vote() -> None:
    tree = await search("1", "both")
    for node in np.flatnonzero(tree.terminal):
        assert tree.reward[node] == tree.texts[node].endswith("1")
    assert not set((tree.value_sum / tree.visits)[tree.terminal]) <= {0.0, 1.0}


async def test_the_answer_of_most_traces_wins_however_it_is_written_and_no_answer_never_does() -> None:
    tree = await search("", "vote")
    answers = {int(node): ANSWER(tree.texts[node]) for node in np.flatnonzero(tree.terminal)}
    votes = {answer: sum(int(tree.visits[n]) for n in answers if answers[n] == answer) for answer in answers.values()}
    assert votes[""] > votes["2"] > votes["1"]
    for node, answer in answers.items():
        assert tree.reward[node] == (answer == "2")
        assert tree.value_sum[node] == pytest.approx(tree.visits[node] * (votes[answer] / 80 if answer else 0))


async def test_votes_need_a_way_to_read_answers() -> None:
    async def grade(problem: Problem, text: str) -> float:
        return 0.0

    with pytest.raises(ConfigError, match="reward is 'vote': pass how to read"):
        await search_problem(PROBLEM, [63], ScriptedEngine(teacher), grade, TOKENIZE, SearchSettings(reward="vote"), 0)
