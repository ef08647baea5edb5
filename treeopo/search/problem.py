"""Monte Carlo tree search of one problem: a coroutine over the ports `Generate`, `Grade` and `Tokenize`.

select   descend by UCT to a node with tries left
expand   A1: ask for one step there; a step that repeats a child leads to that child, and the trace goes on below
simulate A2: from a new child ask for the rest of the solution; each of its steps becomes a node
back up  grade the finished trace, count it along its whole path
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from treeopo_storage import Action, ProblemTree

from treeopo.errors import EngineError
from treeopo.ports import Generate, Grade, Tokenize
from treeopo.records import FinishReason, FloatArray, IntArray, Problem, Request
from treeopo.search.settings import SearchSettings
from treeopo.search.steps import StepSplitter
from treeopo.search.tree import GrowingTree, decode_text
from treeopo.search.wording import folded
from treeopo.seeds import derive_seed

ROOT_NODE = 0


async def search_problem(
    problem: Problem,
    prompt_ids_T: Sequence[int] | IntArray,
    generate: Generate,
    grade: Grade,
    tokenize: Tokenize,
    settings: SearchSettings,
    seed: int,
    splitter: StepSplitter | None = None,
) -> ProblemTree:
    """Search one problem (SPEC §2) and return every node visited.

    The result depends on the arguments alone, never on what else the engine is doing: request n of the search carries
    a seed made from (seed, n), and rollouts follow one another. Each rollout adds one trace, new or sampled again; the
    search ends early once every node is exhausted. Invariant: visits of a node = traces that ended there + visits of
    its children. Teacher log-probabilities are those of the sampled distribution, so NaN where temperature is not 1.
    Pass one `splitter` (of this tokenizer and these settings) to many searches to save them its work.

    Raises:
        EngineError: the engine refused or failed a request; nothing of this problem is returned.
    """
    prompt_ids = np.asarray(prompt_ids_T, np.int32)
    tree = GrowingTree(prompt_ids, settings.branching)
    splitter = splitter or StepSplitter(tokenize, settings.separator, settings.answer_mark)
    search = _Search(problem, len(prompt_ids), tree, generate, grade, tokenize, splitter, settings, seed)
    for rollout in range(settings.rollouts):
        leaf = await search.trace(settings.exploration_at(rollout))
        if leaf is None:
            break
        tree.back_propagate(leaf)
    return tree.freeze(problem, tokenize)


class _Reply(NamedTuple):
    """What the teacher said, up to its final answer; `room`: tokens its solution had left when it was asked."""

    token_ids: IntArray  # (T,)
    logprobs: FloatArray  # (T,)
    ends: list[int]  # of steps after which the solution may go on
    reason: FinishReason
    room: int


@dataclass(slots=True)
class _Search:
    """One problem's search under way: the tree and what is needed to grow it."""

    problem: Problem
    prompt_length: int
    tree: GrowingTree
    generate: Generate
    grade: Grade
    tokenize: Tokenize
    splitter: StepSplitter
    settings: SearchSettings
    seed: int
    requests: int = 0

    async def trace(self, exploration: float) -> int | None:
        """Complete one trace: the terminal node it ended in, or None where the tree holds nothing left to search."""
        tree, node = self.tree, ROOT_NODE
        while not tree.exhausted_P[ROOT_NODE]:
            node = tree.select(node, exploration)
            child, is_new = await self._expand(node)
            if tree.is_terminal(child):
                return child
            if is_new:
                return await self._simulate(child)
            node = ROOT_NODE if tree.exhausted_P[child] else child
        return None

    async def _expand(self, node: int) -> tuple[int, bool]:
        """A1, one step below `node`; at the depth limit the step is all that remains."""
        is_last = self.tree.depth_P[node] + 1 == self.settings.depth
        stop = () if is_last else (self.settings.separator,)
        limit = self.settings.max_solution_tokens if is_last else self.settings.max_step_tokens
        reply = await self._ask(node, limit, stop)
        goes_on = bool(reply.ends) and not is_last
        length = reply.ends[0] if goes_on else len(reply.token_ids)
        child, is_new = self._grow(node, reply, slice(length), Action.STEP, None if goes_on else reply.reason)
        if is_new and not goes_on:
            await self._finish(child, reply.reason)
        elif is_new and length == reply.room:
            await self._finish(child, FinishReason.LENGTH)
        return child, is_new

    async def _simulate(self, node: int) -> int:
        """A2, the rest of the solution below the new node `node`, a node per step; returns its terminal node."""
        reply = await self._ask(node, self.settings.max_solution_tokens, ())
        length = len(reply.token_ids)
        steps_left = self.settings.depth - self.tree.depth_P[node]
        inner_ends = [end for end in reply.ends[: steps_left - 1] if end < length]
        for start, end in pairwise([0, *inner_ends, length]):
            reason = reply.reason if end == length else None
            node, _ = self._grow(node, reply, slice(start, end), Action.SOLUTION, reason)
        await self._finish(node, reply.reason)
        return node

    def _grow(
        self, node: int, reply: _Reply, step: slice, action: Action, reason: FinishReason | None
    ) -> tuple[int, bool]:
        """Lead from `node` to the child that is this step of the reply; `reason`: why the trace ends with it."""
        token_ids = reply.token_ids[step]
        if self.settings.merge == "tokens":
            key: Hashable = token_ids.tobytes()
        else:  # a step that ends its trace is never the same as one that does not
            key = (folded(decode_text(token_ids.tolist(), self.tokenize)), reason)
        return self.tree.grow(node, token_ids, reply.logprobs[step], action, key)

    async def _ask(self, node: int, limit: int, stop: tuple[str, ...]) -> _Reply:
        """Continue the prefix of `node` by at most `limit` tokens, and no further than its solution may go."""
        prefix_ids = self.tree.prefix_ids(node)
        room = self.settings.max_solution_tokens - (len(prefix_ids) - self.prompt_length)
        seed = derive_seed(self.seed, self.requests)
        self.requests += 1
        request = Request(prefix_ids, min(limit, room), seed, self.settings.temperature, stop)
        completion = await self.generate.generate(request)
        if not len(completion.token_ids):
            raise EngineError(f"the engine returned no token for a step of problem {self.problem.id!r}")
        ends, end, answered = self.splitter.split(completion.token_ids.tolist())
        logprobs = completion.logprobs[:end]
        if self.settings.temperature != 1:
            logprobs = np.full_like(logprobs, np.nan)  # not of the teacher's own distribution
        reason = FinishReason.STOP if answered else completion.finish_reason
        return _Reply(completion.token_ids[:end], logprobs, ends, reason, room)

    async def _finish(self, node: int, reason: FinishReason) -> None:
        """End a trace: graded if it ended by itself, 0 if it ran out of tokens."""
        reward = 0.0
        if reason is FinishReason.STOP:
            solution_ids = self.tree.prefix_ids(node)[self.prompt_length :]
            reward = await self.grade(self.problem, decode_text(solution_ids, self.tokenize))
        self.tree.end(node, reward)
