"""rStar's actions A3 to A5, rule by rule, on a scripted teacher that knows which prompt it is asked under."""

import asyncio
import random
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Final

import numpy as np
import pytest
from treeopo_storage import Action, ProblemTree

from treeopo.engines.in_process import _prompt_logprobs
from treeopo.engines.scripted import CharTokenizer, Pieces, ScriptedEngine, ScriptedPolicy
from treeopo.errors import ConfigError, EngineError
from treeopo.problems.problem_set import ProblemSet
from treeopo.problems.prompting import Prompter, PromptSettings
from treeopo.records import Completion, Problem, Request
from treeopo.search.actions import TEMPLATES, ActionPrompts
from treeopo.search.build import build_trees
from treeopo.search.problem import search_problem
from treeopo.search.settings import SearchSettings

PROBLEM = Problem("p", "How many?", "GOLD", solution="WORKED")
PROMPT = "Q: How many?\n\n"
TOKENIZE = CharTokenizer()
ALL: Final = ("step", "solution", "subquestion", "reanswer", "rephrase")
PROMPTED = {Action.SUBQUESTION, Action.REANSWER, Action.REPHRASE}
OPENING = {  # by what ends the prompt, what comes back begins with
    "sub-question and its answer:\n\n": "Sub",
    "new answer to it:\n\n": "Again",
    "in other words:\n\n": "Rephrased",
}


def kind(prompt: str) -> str:
    return next((opening for ending, opening in OPENING.items() if prompt.endswith(ending)), "Step")


def teacher(prompt: str, rng: random.Random, version: int) -> Pieces:
    """Numbers its steps at random, so that none is repeated, and says in the first word what it was asked for."""
    step = f"{kind(prompt)} {rng.getrandbits(32)}\n\n"
    return [(step, -3.0)] if kind(prompt) != "Step" else [(step, -2.0), (f"#### {rng.randrange(2)}", -1.0)]


def likelihood(prefix: str, text: str) -> float:
    """What the teacher thinks of a text under the plain prompt; any other prefix would give another number."""
    return -float(zlib.crc32(f"{prefix}|{text}".encode()) % 1000)


@dataclass
class Recorder(ScriptedEngine):
    """Keeps what it was asked; a request takes a random number of turns of the event loop."""

    policy: ScriptedPolicy
    shuffle: int = 0
    asked: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(self.policy, likelihood=likelihood)
        self._turns = random.Random(self.shuffle)

    async def generate(self, request: Request) -> Completion:
        self.asked.append(request)
        for _ in range(self._turns.randrange(self.shuffle + 1)):
            await asyncio.sleep(0)
        return await super().generate(request)

    @property
    def prompts(self) -> list[str]:
        return [TOKENIZE.decode(list(request.token_ids)) for request in self.asked]


def encode_question(problem: Problem) -> list[int]:
    return TOKENIZE.encode(problem.question)


async def grade(problem: Problem, text: str) -> float:
    return float(text.rstrip().endswith("#### 1"))


async def search(
    policy: ScriptedPolicy = teacher, seed: int = 0, shuffle: int = 0, scored: bool = True, **settings: object
) -> tuple[ProblemTree, Recorder]:
    engine = Recorder(policy, shuffle)
    chosen = SearchSettings(**({"actions": ALL, "rollouts": 40} | settings))  # type: ignore[arg-type]
    score = engine if scored else None
    prompt_ids = TOKENIZE.encode(PROMPT)
    tree = await search_problem(PROBLEM, prompt_ids, engine, grade, TOKENIZE, chosen, seed, score=score)
    return tree, engine


def nodes_of(tree: ProblemTree, *actions: Action) -> list[int]:
    return [int(node) for node in np.flatnonzero(np.isin(tree.action, actions))]


def step_logprobs(tree: ProblemTree, node: int) -> np.ndarray:
    return tree.teacher_logprobs[tree.token_offsets[node] : tree.token_offsets[node + 1]]


@pytest.mark.parametrize("seed", range(4))
async def test_every_step_bears_the_action_that_it_was_asked_for_by_and_is_where_that_is_legal(seed: int) -> None:
    tree, _ = await search(seed=seed)
    assert set(tree.action) == set(Action)
    words = {Action.SUBQUESTION: "Sub", Action.REANSWER: "Again", Action.REPHRASE: "Rephrased", Action.STEP: "Step"}
    for action, word in words.items():
        assert all(tree.texts[node].startswith((word, "####")) for node in nodes_of(tree, action)), action
    assert all(tree.parent[node] == 0 for node in nodes_of(tree, Action.REPHRASE))
    for node in nodes_of(tree, Action.REANSWER):
        earlier = tree.action[:node][tree.parent[:node] == tree.parent[node]]
        assert Action.SUBQUESTION in earlier
    assert np.bincount(tree.parent[1:]).max() <= 5
    assert not np.isin(tree.action[tree.depth == 5], list(PROMPTED)).any()  # the last step is all that remains


async def test_a_new_answer_is_asked_for_where_the_subquestion_shows_and_put_beside_it() -> None:
    tree, engine = await search()
    asked = [prompt for prompt in engine.prompts if kind(prompt) == "Again"]
    assert len(asked) == len(nodes_of(tree, Action.REANSWER)) > 3
    for node, prompt in zip(nodes_of(tree, Action.REANSWER), asked, strict=True):
        siblings = [
            s for s in nodes_of(tree, Action.SUBQUESTION, Action.REANSWER) if tree.parent[s] == tree.parent[node]
        ]
        shown = TOKENIZE.decode(tree.prefix_tokens(max(s for s in siblings if s < node)).tolist())
        assert shown.removeprefix(PROMPT) + "The last sub-question" in prompt


async def test_the_actions_of_a_node_are_taken_in_turn_before_one_comes_again() -> None:
    orders = set()
    for seed in range(12):
        tree, _ = await search(seed=seed, actions=("step", "solution", "subquestion", "rephrase"), rollouts=3)
        children = [int(tree.action[node]) for node in np.flatnonzero(tree.parent == 0)]
        assert sorted(children) == [Action.STEP, Action.SUBQUESTION, Action.REPHRASE]
        orders.add(tuple(children))
    assert len(orders) > 3


async def test_the_stored_tokens_are_those_of_the_completion_and_prefixes_are_asked_for_with_them() -> None:
    tree, engine = await search()
    plain = [request for request, prompt in zip(engine.asked, engine.prompts, strict=True) if kind(prompt) == "Step"]
    prefixes = {tuple(tree.prefix_tokens(node)) for node in range(tree.node_count)}
    assert all(tuple(request.token_ids) in prefixes for request in plain)
    for node in nodes_of(tree, *PROMPTED):
        assert tree.texts[node].endswith("\n\n")
        assert tree.texts[node].count("\n\n") == 1


async def test_a_step_that_ends_its_text_gets_the_separator_in_place_of_the_end() -> None:
    def ends(prompt: str, rng: random.Random, version: int) -> Pieces:
        return (
            [(f"Sub {rng.getrandbits(16)}" + "\n" * rng.randrange(2), -1.0)]
            if kind(prompt) != "Step"
            else teacher(prompt, rng, version)
        )

    tree, _ = await search(ends)
    for node in nodes_of(tree, *PROMPTED):
        ids = tree.token_ids[tree.token_offsets[node] : tree.token_offsets[node + 1]]
        assert TOKENIZE.eos_token_id not in ids
        assert TOKENIZE.decode(ids.tolist()).count("\n") == 2
        assert TOKENIZE.decode(ids.tolist()).endswith("\n\n")
        assert not tree.terminal[node]


async def test_a_subquestion_that_states_the_answer_ends_its_trace() -> None:
    def answers(prompt: str, rng: random.Random, version: int) -> Pieces:
        return [("Then what? #### 1", -1.0)] if kind(prompt) == "Sub" else teacher(prompt, rng, version)

    tree, _ = await search(answers, actions=("step", "solution", "subquestion"))
    assert all(tree.terminal[node] and tree.reward[node] == 1 for node in nodes_of(tree, Action.SUBQUESTION))


async def test_log_probabilities_are_those_under_the_plain_prompt() -> None:
    tree, _ = await search()
    for node in nodes_of(tree, *PROMPTED):
        prefix = TOKENIZE.decode(tree.prefix_tokens(int(tree.parent[node])).tolist())
        expected = likelihood(prefix, tree.texts[node])
        np.testing.assert_array_equal(step_logprobs(tree, node), [expected, *[0] * (len(tree.texts[node]) - 1)])
    for node in nodes_of(tree, Action.STEP, Action.SOLUTION):  # asked for under the plain prompt: as they were sampled
        assert step_logprobs(tree, node)[0] in (-2, -1)


async def test_without_a_scorer_they_are_unknown_and_never_those_of_the_other_prompt() -> None:
    tree, _ = await search(scored=False)
    assert all(np.isnan(step_logprobs(tree, node)).all() for node in nodes_of(tree, *PROMPTED))
    assert not any(np.isnan(step_logprobs(tree, node)).any() for node in nodes_of(tree, Action.STEP, Action.SOLUTION))


async def test_a_scorer_also_knows_what_a_temperature_hides() -> None:
    tree, _ = await search(temperature=0.7)
    assert not np.isnan(tree.teacher_logprobs[len(PROMPT) :]).any()


@pytest.mark.parametrize("leaves", [1, 4])
async def test_the_tree_depends_on_the_seed_alone_whatever_answers_first(leaves: int) -> None:
    tree, _ = await search(leaves=leaves)
    for shuffle in (1, 7, 50):
        again, _ = await search(leaves=leaves, shuffle=shuffle)
        assert again.texts == tree.texts
        np.testing.assert_array_equal(again.parent, tree.parent)
        np.testing.assert_array_equal(again.action, tree.action)
        np.testing.assert_array_equal(again.teacher_logprobs, tree.teacher_logprobs)
    other, _ = await search(leaves=leaves, seed=1)
    assert other.texts != tree.texts


async def test_a_build_gives_the_same_trees_whatever_its_concurrency() -> None:
    async def build(concurrency: int) -> list[ProblemTree]:
        engine = Recorder(teacher, shuffle=concurrency)
        trees: list[ProblemTree] = []
        problems = [Problem(str(number), f"{number}?", "1") for number in range(6)]
        parts = (engine, grade, TOKENIZE, SearchSettings(actions=ALL), 3, trees.extend)
        await build_trees(problems, 0, encode_question, *parts, concurrency=concurrency, score=engine)
        return trees

    alone, together = await build(1), await build(6)
    assert [tree.texts for tree in alone] == [tree.texts for tree in together]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.teacher_logprobs, other.teacher_logprobs)


@pytest.mark.parametrize("reply", ["", "\n\nSub", "  \n\n", "no end of it " * 100])
@pytest.mark.parametrize("leaves", [1, 3])
async def test_what_holds_no_whole_step_makes_no_child_and_spends_a_try(reply: str, leaves: int) -> None:
    def mute(prompt: str, rng: random.Random, version: int) -> Pieces:
        return [(reply, -1.0)] if kind(prompt) != "Step" else teacher(prompt, rng, version)

    tree, engine = await search(mute, rollouts=10_000, branching=3, depth=3, leaves=leaves)
    assert set(tree.action) <= {Action.ROOT, Action.STEP, Action.SOLUTION}
    assert tree.visits[0] < 10_000  # every try is spent once, then the search ends
    assert any(kind(prompt) != "Step" for prompt in engine.prompts)
    children = np.bincount(tree.parent[1:], minlength=tree.node_count)
    assert (children[~tree.terminal] >= 1).all()
    expected = np.array([tree.visits[tree.parent == node].sum() for node in range(tree.node_count)])
    np.testing.assert_array_equal(tree.visits[~tree.terminal], expected[~tree.terminal])


async def test_one_try_a_node_is_a_step() -> None:
    tree, _ = await search(branching=1)
    assert not nodes_of(tree, *PROMPTED)


async def test_without_the_solution_action_a_trace_goes_on_step_by_step() -> None:
    def three(prompt: str, rng: random.Random, version: int) -> Pieces:
        return [(f"{kind(prompt)} {rng.getrandbits(16)}\n\n", -1.0), ("#### 1", -1.0)]

    tree, _ = await search(three, actions=("step", "subquestion"), rollouts=1, depth=4)
    assert tree.depth.tolist() == [0, 1, 2, 3, 4]
    assert Action.SUBQUESTION in tree.action
    assert Action.SOLUTION not in tree.action


@pytest.mark.parametrize("leaves", [1, 5])
async def test_a_trace_without_the_solution_action_is_counted_like_any_other(leaves: int) -> None:
    tree, _ = await search(actions=("step", "subquestion", "reanswer"), leaves=leaves, max_solution_tokens=60)
    assert tree.visits[0] == 40
    assert tree.visits[tree.terminal].sum() == 40
    assert all(len(tree.prefix_tokens(node)) <= len(PROMPT) + 60 for node in range(tree.node_count))


async def test_no_prompt_tells_the_gold_answer() -> None:
    _, engine = await search()
    assert not any("GOLD" in prompt or "WORKED" in prompt for prompt in engine.prompts)


async def test_the_default_asks_by_continuation_alone_and_reads_no_template(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("treeopo.search.actions.TEMPLATES", Path("nowhere"))
    tree, engine = await search(actions=SearchSettings().actions, scored=False)
    assert set(tree.action) == {Action.ROOT, Action.STEP, Action.SOLUTION}
    assert all(prompt.startswith(PROMPT) for prompt in engine.prompts)


def write_templates(folder: Path, **texts: str) -> Path:
    for path in TEMPLATES.glob("*.txt"):
        (folder / path.name).write_text(texts.get(path.stem, path.read_text()))
    return folder


async def test_templates_of_ones_own_replace_those_that_ship(tmp_path: Path) -> None:
    folder = write_templates(tmp_path, subquestion="Ask! {question} / {steps} /")
    _, engine = await search(templates=folder)
    assert f"Ask! {PROBLEM.question} /  /" in engine.prompts
    assert "Next sub-question" not in "".join(engine.prompts)


def test_a_question_that_looks_like_a_placeholder_stays_as_it_is() -> None:
    prompts = ActionPrompts(SearchSettings(actions=ALL), TOKENIZE.encode)
    text = TOKENIZE.decode(prompts.prompt(Action.SUBQUESTION, "What is {steps}?", "{question}\n\n"))
    assert "What is {steps}?" in text
    assert "{question}\n\nNext" in text


@pytest.mark.parametrize("name", ["subquestion", "reanswer", "rephrase"])
@pytest.mark.parametrize("text", ["", "{steps}", "{question} {question} {steps}", None])
def test_a_template_that_cannot_be_used_is_refused_in_one_line(tmp_path: Path, name: str, text: str | None) -> None:
    folder = write_templates(tmp_path, **{name: text or ""})
    if text is None:
        (folder / f"{name}.txt").unlink()
    with pytest.raises(ConfigError, match=rf"^search\.templates: .*{name}\.txt[ :]") as caught:
        ActionPrompts(SearchSettings(actions=ALL, templates=folder), TOKENIZE.encode)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"actions": ("step", "guess")}, "actions has 'guess'"),
        ({"actions": ("step", "step")}, "names one twice"),
        ({"actions": ("solution",)}, "lacks step"),
        ({"actions": ("step", "reanswer")}, "without subquestion"),
        ({"templates": Path("mine")}, "no action has a prompt of its own"),
    ],
)
def test_actions_that_cannot_be_are_refused_in_one_line(settings: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        SearchSettings(**settings)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_of_a_prompt_that_vllm_scored_the_tokens_after_the_prefix_count() -> None:
    entries = [None, {6: SimpleNamespace(logprob=-0.5)}, {7: SimpleNamespace(logprob=-1.5)}]
    output = SimpleNamespace(prompt_token_ids=[5, 6, 7], prompt_logprobs=entries)
    assert _prompt_logprobs(output, 1).tolist() == [-0.5, -1.5]
    assert _prompt_logprobs(output, 2).tolist() == [-1.5]


async def test_a_scripted_engine_without_a_likelihood_does_not_score() -> None:
    with pytest.raises(EngineError, match="no likelihood"):
        await ScriptedEngine(teacher).score([np.array([1, 2], np.int32)], [1])


def test_a_chat_model_is_instructed_in_its_own_template() -> None:
    class Chat(CharTokenizer):
        def chat(self, messages: list[dict[str, str]], chat_arguments: object) -> list[int]:
            return self.encode("".join(f"<{message['role']}>{message['content']}" for message in messages))

    problem_set = ProblemSet("s", (PROBLEM,))
    chat = Prompter(Chat(), PromptSettings(style="chat"), problem_set)  # type: ignore[arg-type]
    plain = Prompter(Chat(), PromptSettings(), problem_set)  # type: ignore[arg-type]
    assert TOKENIZE.decode(chat.instruct("Ask.\n\n")) == "<user>Ask."
    assert TOKENIZE.decode(plain.instruct("Ask.\n\n")) == "Ask.\n\n"
