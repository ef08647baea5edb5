"""Monte Carlo tree search of one problem: a coroutine over the ports `Generate`, `Grade` and `Tokenize`.

select   descend by UCT to a node with tries left
expand   A1 (or A3 to A5, where enabled): ask for one step there; a step that repeats a child leads to that child, and
         the trace goes on below
simulate A2: from a new child ask for the rest of the solution; each of its steps becomes a node
back up  grade the finished trace, count it along its whole path
rescore  at the end, ask for the log-probabilities of the steps that were produced under another than the plain prompt

With `leaves` above 1 this is done in rounds of that many traces. Their requests are in flight together and answered
in waves, each applied in the order of the traces, so that the tree never depends on which answer came first.
"""

from collections.abc import Callable, Coroutine, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, assert_never

import numpy as np
from treeopo_storage import Action, ProblemTree

from treeopo.errors import ConfigError
from treeopo.ports import Generate, Grade, ScoreTokens, Tokenize
from treeopo.records import FinishReason, IntArray, Problem, known_logprobs
from treeopo.search.actions import ActionChoice, ActionPrompts, AskedAction, is_enabled, last_subquestion
from treeopo.search.settings import SearchSettings
from treeopo.search.steps import StepSplitter
from treeopo.search.teacher import Answer, Reply, SearchTeacher
from treeopo.search.tree import ROOT_NODE, GrowingTree, decode_text
from treeopo.search.votes import Votes
from treeopo.search.wording import folded
from treeopo.tasks import gather_or_cancel


async def search_problem(
    problem: Problem,
    prompt_ids_T: Sequence[int] | IntArray,
    generate: Generate,
    grade: Grade,
    tokenize: Tokenize,
    settings: SearchSettings,
    seed: int,
    splitter: StepSplitter | None = None,
    answer: Answer | None = None,
    prompts: ActionPrompts | None = None,
    score: ScoreTokens | None = None,
    on_traces: Callable[[int, int], None] = lambda traces, solved: None,
) -> ProblemTree:
    """Search one problem (Tree-OPO §3.1 and App. D) and return every node visited.

    The result depends on the arguments alone, never on what else the engine is doing: request n of the search carries
    a seed made from (seed, n), and answers are taken in the order asked. Each rollout adds one trace, new or sampled
    again; the search ends early once every node is exhausted. Invariant: visits of a node = traces that ended there +
    visits of its children. Teacher log-probabilities are those of the sampled distribution, so NaN where temperature
    is not 1 or the step was asked for under another prompt (A3 to A5), unless `score` gives those of the plain prompt.
    Pass one `splitter` and `prompts` (of this tokenizer and these settings) to many searches to save them their work.
    `on_traces` is told of every round how many traces it added, and how many of them are solved (reward 1; none is
    before the end where the reward is by vote).

    Raises:
        ConfigError: the settings ask for votes, and `answer` is not given; or a template of theirs cannot be used.
        EngineError: the engine refused or failed a request; nothing of this problem is returned.
    """
    if settings.votes and answer is None:
        raise ConfigError(f"reward is {settings.reward!r}: pass how to read a solution's final answer")
    prompt_ids = np.asarray(prompt_ids_T, np.int32)
    tree = GrowingTree(prompt_ids, settings.branching)
    splitter = splitter or StepSplitter(tokenize, settings.separator, settings.answer_mark)
    prompts = prompts or ActionPrompts(settings, tokenize.encode)
    teacher = SearchTeacher(problem, len(prompt_ids), generate, tokenize, splitter, settings, prompts, seed)
    search = _Search(teacher, tree, grade, answer)
    done = 0
    while done < settings.rollouts and not tree.exhausted_P[ROOT_NODE]:
        stop = min(done + settings.leaves, settings.rollouts)
        ended = await search.round(settings.exploration_at(rollout) for rollout in range(done, stop))
        done += len(ended)
        on_traces(len(ended), sum(tree.reward_P[node] >= 1 for node in ended))
    if not settings.grades:
        search.votes.elect(tree)
    if score is not None:
        await _rescore(tree, score)
    return tree.freeze(problem, tokenize)


async def _rescore(tree: GrowingTree, score: ScoreTokens) -> None:
    """Fill in the steps whose log-probabilities are unknown with those that follow the plain prompt and their path."""
    unknown = [node for node in range(1, len(tree.parent_P)) if np.isnan(tree.logprobs_P[node]).any()]
    prefixes = [np.array(tree.prefix_ids(node), np.int32) for node in unknown]
    lengths = [len(prefix) - len(tree.token_ids_P[node]) for node, prefix in zip(unknown, prefixes, strict=True)]
    for node, logprobs in zip(unknown, await score.score(prefixes, lengths), strict=True):
        tree.logprobs_P[node] = known_logprobs(logprobs)


@dataclass(slots=True)
class _Trace:
    """A rollout under way. node: where it stands; the path there bears its virtual loss. is_new: `node` was added for
    it, so that the rest of the solution is asked for next; otherwise a step is, by `action`.
    """

    exploration: float
    node: int = ROOT_NODE
    is_new: bool = False
    action: AskedAction = Action.STEP


class _Move(NamedTuple):
    """Where a reply leads: a node, whether it is new, and why the trace ends there (None: it goes on)."""

    node: int
    is_new: bool
    reason: FinishReason | None


class _Search:
    """One problem's search under way: the tree and what is needed to grow it."""

    def __init__(self, teacher: SearchTeacher, tree: GrowingTree, grade: Grade, answer: Answer | None) -> None:
        self.teacher = teacher
        self.tree = tree
        self.settings = teacher.settings
        self.votes = Votes()
        self._actions = ActionChoice(self.settings, teacher.seed)
        self._simulates = is_enabled(self.settings, Action.SOLUTION)
        self._grade = grade
        self._answer = answer

    async def round(self, explorations: Iterable[float]) -> list[int]:
        """Complete a trace for each constant and back them up in that order; the nodes where they ended.

        A trace that finds every try taken by the others is left out: it belongs to the next round.
        """
        tree = self.tree
        traces = [_Trace(exploration) for exploration in explorations]
        under_way = traces
        while under_way:
            asking = [trace for trace in under_way if self._choose(trace)]
            for trace, reply in zip(asking, await self._replies(asking), strict=True):
                await self._follow(trace, reply)
            under_way = [trace for trace in asking if not tree.is_terminal(trace.node)]
        ended = [trace.node for trace in traces if tree.is_terminal(trace.node)]
        for node in ended:
            self._add_virtual_loss(node, -1)
            tree.back_propagate(node)
        if self.settings.votes:
            self.votes.revalue(tree)
        return ended

    def _choose(self, trace: _Trace) -> bool:
        """Move a trace to the node it asks at and claim a try there; False where the tree has none left for it."""
        tree = self.tree
        if trace.is_new:
            return True
        if trace.node != ROOT_NODE:
            self._add_virtual_loss(trace.node, -1)  # a trace is no hindrance to itself
        start = trace.node if tree.has_room(trace.node) else ROOT_NODE
        trace.node = ROOT_NODE
        if not tree.has_room(start):
            return False
        trace.node = tree.select(start, trace.exploration)
        trace.action = self._actions.choose(tree, trace.node)
        tree.claims_P[trace.node] += 1
        self._add_virtual_loss(trace.node, 1)
        return True

    async def _replies(self, traces: Sequence[_Trace]) -> list[Reply | None]:
        """What the teacher says to each trace, all asked at once."""
        asked = [self._ask(trace) for trace in traces]
        return [await asked[0]] if len(asked) == 1 else await gather_or_cancel(asked)

    def _ask(self, trace: _Trace) -> Coroutine[Any, Any, Reply | None]:
        """The request of one trace, with the next seed; begun when awaited."""
        tree, teacher, node = self.tree, self.teacher, trace.node
        prefix_ids, seed = tree.prefix_ids(node), teacher.next_seed()
        if trace.is_new:
            return teacher.ask(prefix_ids, seed, one_step=False)
        match trace.action:
            case Action.STEP:
                return teacher.ask(prefix_ids, seed, one_step=not self._is_last(node))
            case Action.SUBQUESTION | Action.REPHRASE:
                return teacher.ask_with_action_prompt(trace.action, prefix_ids, prefix_ids, seed)
            case Action.REANSWER:
                subquestion = last_subquestion(tree, node)
                shown_ids = prefix_ids if subquestion is None else tree.prefix_ids(subquestion)
                return teacher.ask_with_action_prompt(trace.action, prefix_ids, shown_ids, seed)
            case _ as unknown:
                assert_never(unknown)

    async def _follow(self, trace: _Trace, reply: Reply | None) -> None:
        """Move a trace along the step or steps of a reply; a new child below which it goes on keeps a try for it.

        Without a step it stays where it is and has spent a try: it asks again, there or from the root.
        """
        tree = self.tree
        tree.claims_P[trace.node] -= 1
        self._add_virtual_loss(trace.node, -1)
        if reply is None:
            tree.spend(trace.node)
            if trace.node != ROOT_NODE:
                self._add_virtual_loss(trace.node, 1)
            return
        move = self._simulate(trace.node, reply) if trace.is_new else self._expand(trace.node, reply, trace.action)
        trace.node, is_new, reason = move
        if is_new and reason is not None:
            await self._finish(trace.node, reason)
        trace.is_new = is_new and reason is None and self._simulates
        tree.claims_P[trace.node] += trace.is_new
        self._add_virtual_loss(trace.node, 1)

    def _add_virtual_loss(self, node: int, traces: int) -> None:
        """Virtual loss for the other traces of the round; one alone needs none."""
        if self.settings.leaves > 1:
            self.tree.add_virtual_loss(node, traces)

    def _is_last(self, node: int) -> bool:
        """At the depth limit the step below is all that remains."""
        return self.tree.depth_P[node] + 1 == self.settings.depth

    def _expand(self, node: int, reply: Reply, action: Action) -> _Move:
        """A1, or A3 to A5: one step below `node`."""
        length, reason = len(reply.token_ids), reply.reason
        if not reply.ends or self._is_last(node):
            return self._grow(node, reply, slice(length), action, reason)
        length = reply.ends[0]
        ending = FinishReason.LENGTH if length == reply.room else None
        return self._grow(node, reply, slice(length), action, ending)

    def _simulate(self, node: int, reply: Reply) -> _Move:
        """A2, the rest of the solution below `node`, a node per step."""
        length = len(reply.token_ids)
        steps_left = self.settings.depth - self.tree.depth_P[node]
        inner_ends = [end for end in reply.ends[: steps_left - 1] if end < length]
        start = 0
        for end in inner_ends:
            node = self._grow(node, reply, slice(start, end), Action.SOLUTION, None).node
            start = end
        return self._grow(node, reply, slice(start, length), Action.SOLUTION, reply.reason)

    def _grow(self, node: int, reply: Reply, step: slice, action: Action, reason: FinishReason | None) -> _Move:
        """Lead from `node` to the child that is this step of the reply.

        A step that ends its trace and one that does not are never the same child.
        """
        token_ids = reply.token_ids[step]
        match self.settings.merge:
            case "tokens":
                key: Hashable = (token_ids.tobytes(), reason)
            case "text":
                key = (folded(decode_text(token_ids.tolist(), self.teacher.tokenize)), reason)
            case _ as unknown:
                assert_never(unknown)
        child, is_new = self.tree.grow(node, token_ids, reply.logprobs[step], action, key)
        return _Move(child, is_new, reason)

    async def _finish(self, node: int, reason: FinishReason) -> None:
        """End a trace: graded or read if it ended by itself; without reward or answer if it ran out of tokens."""
        finished, reward = not reason.is_cut, 0.0
        solution_ids = self.tree.prefix_ids(node)[self.teacher.prompt_length :] if finished else []
        text = decode_text(solution_ids, self.teacher.tokenize)
        if finished and self.settings.grades:
            reward = await self._grade(self.teacher.problem, text)
        if self._answer is not None and self.settings.votes:
            self.votes.cast(node, await self._answer(text) if finished else "")
        self.tree.end(node, reward)
