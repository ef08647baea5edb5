"""The search agrees, trace by trace, with a textbook UCT written another way.

The oracle knows texts instead of tokens, objects instead of arrays, and asks the policy directly instead of an engine;
both see the same random stream, so visits and values of every prefix must be equal, not merely close.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from treeopo_storage import ProblemTree

from tests.profiles import examples
from treeopo.engines.scripted import CharTokenizer, ScriptedEngine, TreeWorld
from treeopo.records import Request
from treeopo.search.problem import search_problem
from treeopo.search.settings import SearchSettings
from treeopo.seeds import derive_seed

TOKENIZE = CharTokenizer()


@dataclass
class Node:
    text: str
    depth: int
    children: dict[str, "Node"] = field(default_factory=dict)
    tries: int = 0
    visits: int = 0
    total: float = 0.0
    reward: float | None = None


class Textbook:
    """UCT by recursion: `visit(node)` returns a trace's reward, or None where nothing is left below `node`."""

    def __init__(self, world: TreeWorld, chosen: SearchSettings, seed: int, answer: Callable[[str], str] = str) -> None:
        self.world, self.chosen, self.seed = world, chosen, seed
        self.engine = ScriptedEngine(world)
        self.requests = 0
        self.root = Node("", 0)
        self.traces: list[str] = []
        self.answer = answer

    async def run(self) -> Node:
        for _ in range(self.chosen.rollouts):
            while not self.spent(self.root):
                if await self.visit(self.root) is not None:
                    if self.chosen.reward == "vote":
                        self.count_votes(self.root)
                    break
        return self.root

    def count_votes(self, node: Node) -> None:
        """The values of all nodes anew, from the list of all traces: a trace is worth the share that agree with it."""
        answers = [self.answer(trace) for trace in self.traces]
        below = [answer for trace, answer in zip(self.traces, answers, strict=True) if trace.startswith(node.text)]
        node.total = sum(answers.count(each) for each in below if each) / len(answers)
        for child in node.children.values():
            self.count_votes(child)

    def spent(self, node: Node) -> bool:
        full = node.tries >= self.chosen.branching
        return node.reward is not None or (full and all(self.spent(child) for child in node.children.values()))

    async def say(self, node: Node, *, one_step: bool) -> list[str]:
        """The next step, or all of them, as texts; the last allowed one takes the rest."""
        request = Request(
            TOKENIZE.encode(self.world.question + node.text),
            max_tokens=10_000,
            seed=derive_seed(self.seed, self.requests),
            stop=("\n\n",) if one_step else (),
        )
        self.requests += 1
        words = (await self.engine.generate(request)).text.split("\n\n")
        steps = [word + "\n\n" for word in words[:-1]] + ([words[-1]] if words[-1] else [])
        room = self.chosen.depth - node.depth
        return [*steps[: room - 1], "".join(steps[room - 1 :])] if len(steps) > room else steps

    def child(self, node: Node, step: str) -> Node:
        node.tries += 1
        child = node.children.setdefault(step, Node(node.text + step, node.depth + 1))
        if not step.endswith("\n\n"):
            child.reward = self.world.is_right(self.world.problem(""), child.text)
        return child

    async def visit(self, node: Node) -> float | None:
        reward = await self.reward_below(node)
        if reward is not None:
            node.visits += 1
            node.total += reward
        return reward

    async def reward_below(self, node: Node) -> float | None:
        if node.reward is not None:
            self.traces.append(node.text)
            return node.reward
        if node.tries >= self.chosen.branching:
            live = [child for child in node.children.values() if not self.spent(child)]
            return await self.visit(max(live, key=lambda child: self.ucb(node, child)))
        [step] = await self.say(node, one_step=node.depth + 1 < self.chosen.depth)
        is_new = step not in node.children
        child = self.child(node, step)
        if is_new and child.reward is None:
            return await self.play_out(child)
        if child.reward is None and self.spent(child):
            return None
        return await self.visit(child)

    async def play_out(self, node: Node) -> float:
        node.visits += 1
        path = [node]
        for step in await self.say(node, one_step=False):
            path.append(self.child(path[-1], step))
            path[-1].visits += 1
        reward = path[-1].reward
        assert reward is not None
        self.traces.append(path[-1].text)
        for passed in path:
            passed.total += reward
        return reward

    def ucb(self, parent: Node, child: Node) -> float:
        return child.total / child.visits + self.chosen.exploration * math.sqrt(math.log(parent.visits) / child.visits)


def statistics(tree: ProblemTree) -> dict[str, tuple[int, float]]:
    """Visits and value sum by the text of the prefix."""
    texts = ["" for _ in range(tree.node_count)]
    for node in range(1, tree.node_count):
        texts[node] = texts[tree.parent[node]] + tree.texts[node]
    return {text: (int(tree.visits[node]), float(tree.value_sum[node])) for node, text in enumerate(texts)}


def flatten(node: Node) -> dict[str, tuple[int, float]]:
    found = {node.text: (node.visits, node.total)}
    for child in node.children.values():
        found |= flatten(child)
    return found


@given(
    world_branching=st.integers(1, 4),
    world_depth=st.integers(0, 6),
    chances=st.lists(st.sampled_from([0.0, 0.3, 0.7, 1.0]), min_size=1, max_size=5),
    rollouts=st.integers(1, 40),
    depth=st.integers(1, 6),
    branching=st.integers(1, 5),
    exploration=st.sampled_from([0.0, 0.5, math.sqrt(2), 2.0, 1e9]),
    seed=st.integers(0, 2**32),
)
@examples(3)
async def test_visits_and_values_equal_those_of_a_textbook_uct(
    world_branching: int,
    world_depth: int,
    chances: list[float],
    rollouts: int,
    depth: int,
    branching: int,
    exploration: float,
    seed: int,
) -> None:
    world = TreeWorld(world_branching, world_depth, lambda letters: chances[hash_of(letters) % len(chances)])
    chosen = SearchSettings(rollouts=rollouts, depth=depth, branching=branching, exploration=exploration)
    prompt_ids = TOKENIZE.encode(world.question)
    engine = ScriptedEngine(world)
    tree = await search_problem(world.problem("p"), prompt_ids, engine, world.grade, TOKENIZE, chosen, seed)
    oracle = Textbook(world, chosen, seed)
    assert statistics(tree) == flatten(await oracle.run())
    assert engine.requests == oracle.requests


@given(
    chances=st.lists(st.sampled_from([0.0, 0.3, 0.7, 1.0]), min_size=1, max_size=5),
    answers=st.fixed_dictionaries({"1": st.sampled_from(["one", ""]), "0": st.sampled_from(["nought", "one", ""])}),
    rollouts=st.integers(1, 30),
    depth=st.integers(1, 5),
    branching=st.integers(1, 4),
    exploration=st.sampled_from([0.0, 0.5, 2.0]),
    seed=st.integers(0, 2**32),
)
@examples(1.5)
async def test_visits_and_values_by_vote_equal_those_of_a_textbook_uct_that_recounts_every_trace(
    chances: list[float],
    answers: dict[str, str],
    rollouts: int,
    depth: int,
    branching: int,
    exploration: float,
    seed: int,
) -> None:
    world = TreeWorld(3, 4, lambda letters: chances[hash_of(letters) % len(chances)])
    chosen = SearchSettings(rollouts, depth, branching, exploration, reward="vote")
    prompt_ids, engine = TOKENIZE.encode(world.question), ScriptedEngine(world)

    def answer(text: str) -> str:
        return answers[text[-1]]

    async def answer_later(text: str) -> str:
        return answer(text)

    tree = await search_problem(
        world.problem("p"), prompt_ids, engine, world.grade, TOKENIZE, chosen, seed, answer=answer_later
    )
    assert statistics(tree) == flatten(await Textbook(world, chosen, seed, answer).run())


def hash_of(letters: str) -> int:
    return sum(ord(letter) * 31**place for place, letter in enumerate(letters))


async def test_mean_return_converges_to_the_known_success_of_every_branch() -> None:
    """With more tries than traces nothing steers the search, so Q is a plain Monte Carlo estimate at every node."""
    chances = {"a": 0.2, "b": 0.5, "c": 0.9}
    world = TreeWorld(branching=3, depth=2, success=lambda letters: chances[letters[0]])
    chosen = SearchSettings(rollouts=6000, branching=100_000)
    tree = await search_problem(
        world.problem("p"), TOKENIZE.encode(world.question), ScriptedEngine(world), world.grade, TOKENIZE, chosen, 3
    )
    values = tree.value_sum / tree.visits
    half_width = np.sqrt(np.log(2 / 1e-6) / (2 * tree.visits))  # Hoeffding, at a millionth
    assert abs(values[0] - np.mean(list(chances.values()))) < half_width[0]
    for node in np.flatnonzero((tree.depth == 1) | (tree.depth == 2)):
        letter = tree.texts[node if tree.depth[node] == 1 else tree.parent[node]][0]
        assert abs(values[node] - chances[letter]) < half_width[node]


async def test_uct_sends_most_traces_where_success_is_likeliest() -> None:
    """As the textbook says: the share of the best first step grows, so the root's mean return nears its success."""
    chances = [0.1, 0.3, 0.9]
    world = TreeWorld(branching=10**6, depth=5, success=lambda letters: chances[ord(letters[0]) % 3])

    async def root_value(rollouts: int) -> float:
        chosen = SearchSettings(rollouts=rollouts, branching=6, exploration=0.5, depth=6)
        prompt_ids = TOKENIZE.encode(world.question)
        engine = ScriptedEngine(world)
        tree = await search_problem(world.problem("p"), prompt_ids, engine, world.grade, TOKENIZE, chosen, seed=1)
        return float(tree.value_sum[0] / tree.visits[0])

    early, late = await root_value(12), await root_value(1200)
    assert early < 0.75
    assert late > 0.8
