"""One problem's search, rule by rule, on scripted teachers."""

import random
from dataclasses import dataclass, field

import numpy as np
import pytest
from treeopo_storage import Action, ProblemTree

from treeopo.engines.scripted import CharTokenizer, Pieces, ScriptedEngine, ScriptedPolicy
from treeopo.errors import EngineError
from treeopo.records import Completion, FinishReason, Problem, Request
from treeopo.search.problem import search_problem
from treeopo.search.settings import SearchSettings
from treeopo.search.wording import folded

PROBLEM = Problem("p", "?", "1")
TOKENIZE = CharTokenizer()


@dataclass
class Recorder:
    """A scripted engine that keeps every request."""

    policy: ScriptedPolicy
    requests: list[Request] = field(default_factory=list)

    async def generate(self, request: Request) -> Completion:
        self.requests.append(request)
        return await ScriptedEngine(self.policy).generate(request)


async def grade(problem: Problem, text: str) -> float:
    return float(text.rstrip().endswith(f"#### {problem.answer}"))


def always(text: str) -> ScriptedPolicy:
    """The teacher that writes `text` and nothing else, whatever part of it is there already."""

    def policy(prompt: str, rng: random.Random, version: int) -> Pieces:
        return [(text[len(prompt) - 1 :], -1.0)]

    return policy


def numbered(prompt: str, rng: random.Random, version: int) -> Pieces:
    """A teacher that never repeats itself."""
    return [(f"{rng.getrandbits(64)}\n\n", -1.0) for _ in range(3 - prompt.count("\n\n"))] + [("#### 1", -0.5)]


async def search(policy: ScriptedPolicy, seed: int = 0, **settings: object) -> tuple[ProblemTree, list[Request]]:
    teacher = Recorder(policy)
    chosen = SearchSettings(**settings)  # type: ignore[arg-type]
    tree = await search_problem(PROBLEM, TOKENIZE.encode("?"), teacher, grade, TOKENIZE, chosen, seed)
    return tree, teacher.requests


async def test_one_rollout_is_one_step_and_then_the_rest_with_a_node_for_every_step() -> None:
    tree, requests = await search(always("a\n\nb\n\n#### 1"), rollouts=1)
    assert tree.texts == ("?", "a\n\n", "b\n\n", "#### 1")
    assert tree.parent.tolist() == [-1, 0, 1, 2]
    assert tree.action.tolist() == [Action.ROOT, Action.STEP, Action.SOLUTION, Action.SOLUTION]
    assert [request.stop for request in requests] == [("\n\n",), ()]
    assert tree.terminal.tolist() == [False, False, False, True]
    assert tree.visits.tolist() == [1, 1, 1, 1]
    assert tree.value_sum.tolist() == [1, 1, 1, 1]


async def test_prompts_are_the_very_tokens_that_the_teacher_produced() -> None:
    tree, requests = await search(numbered, rollouts=12)
    prefixes = {tuple(tree.prefix_tokens(node)) for node in range(tree.node_count)}
    assert all(tuple(request.token_ids) in prefixes for request in requests)


async def test_every_request_of_a_search_has_its_own_seed_and_another_search_has_others() -> None:
    _, requests = await search(numbered, seed=1, rollouts=8)
    _, others = await search(numbered, seed=2, rollouts=8)
    seeds = [request.seed for request in requests + others]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


async def test_a_repeated_step_spends_the_try_and_the_trace_goes_on_below_the_child() -> None:
    tree, requests = await search(always("a\n\n#### 1"), rollouts=2, branching=2)
    assert tree.texts == ("?", "a\n\n", "#### 1")
    assert [TOKENIZE.decode(list(request.token_ids)) for request in requests] == ["?", "?a\n\n", "?", "?a\n\n"]
    assert tree.visits.tolist() == [2, 2, 2]  # the second rollout sampled the same trace again


async def test_a_teacher_with_one_answer_exhausts_the_tree_and_ends_the_search_early() -> None:
    tree, requests = await search(always("a\n\nb\n\n#### 1"), rollouts=1000, branching=3)
    assert tree.node_count == 4
    assert len(requests) == 2 + 3 * (3 - 1)  # two for the first trace, then the tries left: two at each of three nodes
    assert tree.visits[0] < 1000


async def test_the_step_at_the_depth_limit_is_all_that_remains() -> None:
    tree, _ = await search(always("a\n\nb\n\nc\n\n#### 1"), rollouts=4, depth=2)
    assert tree.texts == ("?", "a\n\n", "b\n\nc\n\n#### 1")
    assert tree.reward[2] == 1
    alone, requests = await search(always("a\n\nb\n\n#### 1"), rollouts=1, depth=1)
    assert alone.texts == ("?", "a\n\nb\n\n#### 1")
    assert requests[0].stop == ()


async def test_a_trace_that_runs_out_of_tokens_ends_with_reward_zero() -> None:
    long_step, _ = await search(always("abcdefgh\n\n#### 1"), rollouts=1, max_step_tokens=4)
    assert long_step.texts == ("?", "abcd")
    assert long_step.reward[1] == 0
    long_solution, _ = await search(always("a\n\nb\n\n#### 1"), rollouts=1, max_solution_tokens=8)
    assert long_solution.texts[-1] == "##"
    assert long_solution.reward[-1] == 0


async def test_a_step_that_uses_up_the_solutions_tokens_ends_its_trace() -> None:
    tree, requests = await search(always("a\n\n#### 1"), rollouts=1, max_solution_tokens=3)
    assert tree.texts == ("?", "a\n\n")
    assert tree.reward[1] == 0
    assert len(requests) == 1


async def test_no_request_asks_for_more_than_the_solution_has_left() -> None:
    _, requests = await search(numbered, rollouts=8, max_solution_tokens=60, max_step_tokens=40)
    assert all(len(request.token_ids) - 1 + request.max_tokens <= 60 for request in requests)


async def test_a_solution_of_one_step_is_one_node() -> None:
    tree, requests = await search(always("#### 1"), rollouts=1)
    assert tree.texts == ("?", "#### 1")
    assert tree.token_ids[-1] == TOKENIZE.eos_token_id
    assert len(requests) == 1


async def test_teacher_log_probabilities_are_kept_for_steps_and_unknown_for_the_prompt() -> None:
    tree, _ = await search(always("ab\n\n#### 1"), rollouts=1)
    np.testing.assert_array_equal(tree.teacher_logprobs[:3], np.array([np.nan, -1, 0], np.float32))
    warm, _ = await search(always("ab\n\n#### 1"), rollouts=1, temperature=0.7)
    assert np.isnan(warm.teacher_logprobs).all()  # of another distribution than the teacher's own


async def test_the_sampling_temperature_reaches_the_engine() -> None:
    _, requests = await search(numbered, rollouts=1, temperature=0.7)
    assert {request.temperature for request in requests} == {0.7}


async def test_a_trace_ends_with_the_step_that_holds_the_final_answer() -> None:
    babbling = always("a\n\n#### 1\n\nNext question: b\n\n#### 2")
    by_rest, _ = await search(babbling, rollouts=1)
    assert by_rest.texts == ("?", "a\n\n", "#### 1\n\n")
    by_step, requests = await search(babbling, rollouts=2, branching=2)
    assert by_step.texts == by_rest.texts
    assert [request.stop for request in requests[2:]] == [("\n\n",), ("\n\n",)]
    at_limit, _ = await search(babbling, rollouts=1, depth=1)
    assert at_limit.texts == ("?", "a\n\n#### 1\n\n")
    assert by_rest.reward[-1] == by_step.reward[-1] == at_limit.reward[-1] == 1


async def test_an_answer_completed_by_the_very_last_token_allowed_counts() -> None:
    tree, _ = await search(always("#### 1\n\nb"), rollouts=1, depth=1, max_solution_tokens=8)
    assert tree.texts == ("?", "#### 1\n\n")
    assert tree.reward[1] == 1


async def test_a_right_answer_in_a_trace_that_is_cut_off_earns_nothing() -> None:
    tree, _ = await search(always("#### 1 and more"), rollouts=1, max_solution_tokens=6)
    assert tree.texts == ("?", "#### 1")
    assert tree.reward[1] == 0


async def test_texts_and_grades_leave_out_the_end_of_text_token() -> None:
    class Showing(CharTokenizer):
        def decode(self, token_ids: list[int]) -> str:
            return "".join(chr(token) if token else "<end>" for token in token_ids)

    engine = ScriptedEngine(always("a\n\n#### 1"))
    tree = await search_problem(PROBLEM, [63], engine, grade, Showing(), SearchSettings(rollouts=1), 0)
    assert tree.texts == ("?", "a\n\n", "#### 1")
    assert tree.reward[-1] == 1


async def test_without_an_answer_mark_a_trace_goes_on_to_the_end_of_text() -> None:
    tree, _ = await search(always("#### 1\n\nb\n\n#### 2"), rollouts=1, answer_mark="")
    assert tree.texts == ("?", "#### 1\n\n", "b\n\n", "#### 2")


async def test_the_separator_is_a_setting() -> None:
    tree, _ = await search(always("a;b;#### 1"), rollouts=1, separator=";")
    assert tree.texts == ("?", "a;", "b;", "#### 1")


async def test_steps_worded_alike_are_one_child_on_request_and_the_first_wording_stays() -> None:
    wordings = ["Add 2,  then 3.\n\n", "add 2 then 3\n\n", "Add 2; then 3:\n\n", "Add 2.3\n\n"]

    def reworded(prompt: str, rng: random.Random, version: int) -> Pieces:
        first = [] if "\n" in prompt else [(rng.choice(wordings), -1.0)]
        return [*first, ("#### 1", -1.0)]

    by_tokens, _ = await search(reworded, rollouts=60, branching=30)
    assert set(by_tokens.texts[1:]) == {*wordings, "#### 1"}
    by_text, _ = await search(reworded, rollouts=60, branching=30, merge="text")
    assert by_text.node_count == 1 + 2 + 2
    first = min(wordings[:3], key=by_tokens.texts.index)
    assert set(by_text.texts[1:]) == {first, wordings[3], "#### 1"}
    for node in np.flatnonzero(by_text.depth == 1):
        step = slice(*by_text.token_offsets[node : node + 2])
        assert TOKENIZE.decode(by_text.token_ids[step].tolist()) == by_text.texts[node]
        assert by_text.teacher_logprobs[step].tolist() == [-1.0] + [0.0] * (len(by_text.texts[node]) - 1)


async def test_a_step_that_ends_its_trace_is_not_merged_with_one_that_goes_on() -> None:
    def undecided(prompt: str, rng: random.Random, version: int) -> Pieces:
        return [(rng.choice(["done", "Done\n\n#### 1"]) if "\n" not in prompt else "#### 1", -1.0)]

    tree, _ = await search(undecided, rollouts=40, branching=20, merge="text")
    assert sorted(tree.texts[1:]) == ["#### 1", "Done\n\n", "done"]


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("So, x = 2.\n\n", "so x =  2", True),
        ("is it 3?", "Is it 3", True),
        ("\uff13 apples", "3 apples", True),
        ("3.5", "35", False),
        ("2 - 1", "2 + 1", False),
        ("5!", "5", False),
        ("1:2", "12", False),
        ("f'(x)", "f(x)", False),
    ],
)
def test_folding_leaves_calculations_apart(one: str, other: str, alike: bool) -> None:
    assert (folded(one) == folded(other)) is alike


async def test_leaves_searched_together_ask_at_different_nodes_before_any_is_backed_up() -> None:
    tree, requests = await search(numbered, rollouts=12, branching=4, leaves=4)
    asked_at = [TOKENIZE.decode(list(request.token_ids)) for request in requests]
    assert asked_at[:4] == ["?"] * 4  # the root's four tries
    assert len(set(asked_at[4:8])) == 4  # the rest below each of the four new children
    assert len(set(asked_at[8:12])) == 4  # the second round: a step below each child, as each one counts as a loss
    assert {text.count("\n\n") for text in asked_at[8:12]} == {1}
    assert tree.visits[0] == 12


async def test_leaves_never_spend_more_tries_than_a_node_has() -> None:
    tree, requests = await search(numbered, rollouts=9, branching=1, leaves=5)
    assert tree.node_count == 5
    assert len(requests) == 2
    assert tree.visits[0] == 1


async def test_greedy_search_stays_in_the_solved_branch_and_wide_search_spreads_evenly() -> None:
    def first_of_three(prompt: str, rng: random.Random, version: int) -> Pieces:
        """Three first steps, of which "a" alone leads to right answers, then steps without end or repetition."""
        first = [] if "\n" in prompt else [(f"{rng.choice('abc')}\n\n", -1.0)]
        letter = first[0][0][0] if first else prompt[1]
        return [*first, *numbered("", rng, 0)[:3], ("#### 1" if letter == "a" else "#### 0", -1.0)]

    async def visits(exploration: float) -> list[int]:
        tree, _ = await search(first_of_three, rollouts=60, branching=8, exploration=exploration)
        by_letter = {tree.texts[node][0]: int(tree.visits[node]) for node in np.flatnonzero(tree.depth == 1)}
        return [by_letter[letter] for letter in "abc"]

    right, *wrong = await visits(exploration=0.0)
    assert right + sum(wrong) == 60
    assert sum(wrong) <= 7  # none but the tries that the root spends on new steps
    assert await visits(exploration=1e9) == [20, 20, 20]


async def test_an_engine_failure_is_not_swallowed() -> None:
    engine = ScriptedEngine(numbered, failures={3: EngineError("refused")})
    with pytest.raises(EngineError, match="refused"):
        await search_problem(PROBLEM, [63], engine, grade, TOKENIZE, SearchSettings(), 0)


async def test_an_engine_that_returns_nothing_is_named_with_the_problem() -> None:
    class Mute:
        async def generate(self, request: Request) -> Completion:
            none = np.zeros(0, np.int32)
            return Completion(none, np.zeros(0, np.float32), none, "", FinishReason.STOP)

    with pytest.raises(EngineError, match="no token for a step of problem 'p'"):
        await search_problem(PROBLEM, [63], Mute(), grade, TOKENIZE, SearchSettings(), 0)
