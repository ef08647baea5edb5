"""Many searches over one engine, finished trees handed over in problem order.

    problems ─▶ at most `concurrency` searches in flight ─▶ wait for the earliest ─▶ batch ─▶ commit(batch)

Searches run ahead of the earliest unfinished problem by a bounded window, so a slow problem neither starves the engine
nor lets finished trees pile up. Whatever ends the build, the trees taken over so far are committed, and those that
finished behind an unfinished problem are dropped: to resume, start again at the number of committed problems. What the
teacher answered for the others is in the journal, if there is one.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from treeopo_storage import ProblemTree

from treeopo.errors import ConfigError, EngineError
from treeopo.ports import Generate, Grade, ScoreTokens, Tokenize
from treeopo.records import Completion, Problem, Request
from treeopo.search.actions import ActionPrompts
from treeopo.search.journal import Journal
from treeopo.search.problem import search_problem
from treeopo.search.settings import SearchSettings
from treeopo.search.steps import StepSplitter
from treeopo.search.teacher import Answer
from treeopo.seeds import derive_seed

WINDOW = 4
"""Trees held in memory at most, as a multiple of `concurrency`."""


Commit = Callable[[Sequence[ProblemTree]], None]


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """How far a build is: what its finished searches have produced, the traces of all searches, and what the engine
    has answered. expected: traces that the build will have made, fewer once a tree runs out of tries; solved_traces:
    with reward 1, where a trace has one before its search is over.
    """

    problems: int = 0
    solved: int = 0
    nodes: int = 0
    traces: int = 0
    solved_traces: int = 0
    expected: int = 0
    requests: int = 0
    tokens: int = 0

    @property
    def solved_share(self) -> float:
        """Share of the problems that some trace solved (reward 1); 0 before the first."""
        return self.solved / max(self.problems, 1)


async def build_trees(
    problems: Sequence[Problem],
    first_index: int,
    encode_prompt: Callable[[Problem], Sequence[int]],
    generate: Generate,
    grade: Grade,
    tokenize: Tokenize,
    settings: SearchSettings,
    seed: int,
    commit: Commit,
    *,
    concurrency: int = 64,
    commit_every: int = 16,
    on_progress: Callable[[BuildProgress], None] = lambda progress: None,
    answer: Answer | None = None,
    prompts: ActionPrompts | None = None,
    score: ScoreTokens | None = None,
    journal: Journal | None = None,
) -> BuildProgress:
    """Search problems[first_index:] and commit their trees in order, `commit_every` at a time.

    Problem i is searched with a seed made from (seed, i), so the trees depend neither on concurrency nor on where the
    build was resumed. `commit` is called in a thread, one call at a time; `on_progress` once at the start, after each
    completion and each finished search. `journal` answers what an earlier process has asked for already. `answer` reads
    the final answer of a solution, for settings whose reward is by vote; `prompts` (the plain text of the templates if
    not given) and `score` serve the actions A3 to A5.

    Raises:
        ConfigError: concurrency or commit_every below 1, or a template cannot be used.
        EngineError: a search failed; the message names its problem, and all trees before it are committed.
    """
    if concurrency < 1 or commit_every < 1:
        raise ConfigError(f"concurrency ({concurrency}) and commit_every ({commit_every}) must be at least 1")
    count = _Count((len(problems) - first_index) * settings.rollouts, on_progress)
    meter = _Meter(generate, count)
    splitter = StepSplitter(tokenize, settings.separator, settings.answer_mark)
    prompts = prompts or ActionPrompts(settings, tokenize.encode)
    in_flight = asyncio.Semaphore(concurrency)
    done = first_index

    def commit_and_note(batch: Sequence[ProblemTree]) -> None:
        nonlocal done
        commit(batch)
        done += len(batch)
        if journal is not None:
            journal.committed(done)

    async def search(index: int) -> ProblemTree:
        problem = problems[index]
        teacher = meter if journal is None else journal.of(index, meter)
        async with in_flight:
            prompt_ids, own_seed = encode_prompt(problem), derive_seed(seed, index)
            parts = (splitter, answer, prompts, score, count.traces)
            try:
                tree = await search_problem(problem, prompt_ids, teacher, grade, tokenize, settings, own_seed, *parts)
            except EngineError as error:
                raise type(error)(f"problem {index} ({problem.id!r}): {error}") from error
        count.searched(tree, settings.rollouts)
        return tree

    count.tell()
    todo = range(first_index, len(problems))
    await _commit_in_order(search, todo, WINDOW * concurrency, commit_and_note, commit_every)
    return count.progress


async def _commit_in_order(
    search: Callable[[int], Coroutine[None, None, ProblemTree]],
    indices: Iterable[int],
    window: int,
    commit: Commit,
    commit_every: int,
) -> None:
    """Keep `window` searches begun but not yet taken over; take them over in order, and commit them in batches."""
    waiting = iter(indices)
    searches: deque[asyncio.Task[ProblemTree]] = deque()  # in problem order, the earliest unfinished one first
    batch: list[ProblemTree] = []
    commits = _Commits(commit)
    try:
        while True:
            searches.extend(asyncio.create_task(search(index)) for index in islice(waiting, window - len(searches)))
            if not searches:
                return
            batch.append(await searches[0])
            searches.popleft()
            if len(batch) == commit_every:
                full, batch = batch, []
                await commits.add(full)
    finally:
        for task in searches:
            task.cancel()
        await asyncio.gather(*searches, return_exceptions=True)
        if batch:
            await commits.add(batch)
        await commits.finish()


class _Commits:
    """Commits one batch after another in a thread, so that the engine never waits for a disk."""

    def __init__(self, commit: Commit) -> None:
        self._commit = commit
        self._latest: asyncio.Future[None] | None = None

    async def add(self, batch: Sequence[ProblemTree]) -> None:
        """Start committing a batch once the one before it is done; its failure ends all further commits."""
        await self.finish()
        self._latest = asyncio.get_running_loop().run_in_executor(None, self._commit, batch)

    async def finish(self) -> None:
        """Wait for the latest commit and raise its error, if any."""
        if self._latest is not None:
            # Unlike awaiting the commit itself, this leaves it running when the build is cancelled meanwhile.
            await asyncio.wait({self._latest})
            self._latest.result()


class _Count:
    """Keeps a build's progress, and tells `on_progress` of it."""

    def __init__(self, expected: int, on_progress: Callable[[BuildProgress], None]) -> None:
        self.progress = BuildProgress(expected=expected)
        self._on_progress = on_progress

    def tell(self) -> None:
        self._on_progress(self.progress)

    def answered(self, tokens: int) -> None:
        was = self.progress
        self.progress = replace(was, requests=was.requests + 1, tokens=was.tokens + tokens)
        self.tell()

    def traces(self, ended: int, solved: int) -> None:
        """Of a round of a search; an answer or the end of the search follows and is told."""
        was = self.progress
        self.progress = replace(was, traces=was.traces + ended, solved_traces=was.solved_traces + solved)

    def searched(self, tree: ProblemTree, rollouts: int) -> None:
        """A search of at most so many `rollouts` has ended."""
        was = self.progress
        self.progress = replace(
            was,
            problems=was.problems + 1,
            solved=was.solved + bool(np.any(tree.reward[tree.terminal] >= 1)),
            nodes=was.nodes + len(tree.parent),
            expected=was.expected - rollouts + int(tree.visits[0]),
        )
        self.tell()


class _Meter:
    """`Generate` that counts what passes through it."""

    def __init__(self, generate: Generate, count: _Count) -> None:
        self._generate = generate
        self._count = count

    async def generate(self, request: Request) -> Completion:
        completion = await self._generate.generate(request)
        self._count.answered(len(completion.token_ids))
        return completion
