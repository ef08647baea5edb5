"""`treeopo mcts build`: search problems with a teacher and keep every prefix.

problems ─▶ prompts ─▶ search (teacher's engine, grader) ─▶ tree store, committed in problem order
"""

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from treeopo_storage import StoreMeta, create_writer, open_store, open_writer, store_exists

from treeopo import stages, tasks
from treeopo.config import BuildConfig
from treeopo.engines.launch import StartEngine, start_engine
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.errors import RunError
from treeopo.inspect.find import overview
from treeopo.inspect.tokens import missing_opening
from treeopo.places import absolute, mapped
from treeopo.ports import Notify
from treeopo.problems.graders import open_grader, unreadable_golds
from treeopo.problems.problem_set import ProblemSet
from treeopo.problems.prompting import STOP_KEY, Prompter, recorded
from treeopo.problems.settings import GRADER_KEY
from treeopo.problems.spec import load_problem_set
from treeopo.run.models import check_continues, check_whole, embedded
from treeopo.search.actions import ActionPrompts
from treeopo.search.build import BuildProgress, build_trees
from treeopo.search.journal import Journal
from treeopo.search.report import TreeReport
from treeopo.threads import engine_share

OnProgress = Callable[[BuildProgress, int, float], None]


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What a build is about, checked before anything starts."""

    teacher: str
    problem_set: ProblemSet
    tokenizer: ModelTokenizer
    prompter: Prompter
    action_prompts: ActionPrompts


def build_store(
    config: BuildConfig, notify: Notify, on_progress: OnProgress, start_engine: StartEngine = start_engine
) -> TreeReport:
    """Search the configured problems with the teacher, or what an earlier build left of them.

    `on_progress(progress, problems to do, seconds so far)` is called as soon as the search begins, and after each
    completion and each problem. A stopped build has committed every problem before the first unfinished one, and
    continues there when called again; what the teacher answered for the others is in STORE.journal, beside a local
    store, and is not asked for again.

    Raises:
        InputError: problems, teacher or settings cannot be used, or the store was built with others.
        EngineError: the teacher's engine failed; what was finished is committed.
    """
    problem_set = load_problem_set(config.problems, config.limit, config.grading.grader)
    teacher = config.teacher or str(embedded(config.problems).teacher)
    check_whole("teacher", teacher)
    check_continues("teacher", teacher, config.engine.trust_remote_code)
    tokenizer = ModelTokenizer(teacher, config.engine.trust_remote_code)
    prompter = Prompter(tokenizer, config.prompt, problem_set, notify)
    inputs = _Inputs(teacher, problem_set, tokenizer, prompter, ActionPrompts(config.search, prompter.instruct))
    meta, earlier = _meta(config, inputs), _meta(config, inputs, as_typed=True)
    first = 0
    if store_exists(config.output):
        with open_writer(config.output) as writer:  # also refuses now, not after a minute, if another process writes
            first = writer.problem_count
            if replace(writer.meta, vocabulary_size=meta.vocabulary_size) not in (meta, earlier):
                raise RunError(f"{config.output}: built with other settings; use the same, or choose another --output")
        if warning := missing_opening(open_store(config.output), tokenizer):
            notify(warning)
    if first < len(problem_set):
        tasks.run(_search(config, inputs, meta, first, notify, on_progress, start_engine))
    return overview(config.output)[1]


def _meta(config: BuildConfig, inputs: _Inputs, *, as_typed: bool = False) -> StoreMeta:
    """How the store is made; a build goes on only in a store that was made alike. Places in it are absolute, for the
    store is read elsewhere; earlier versions kept them as they were typed.
    """
    search: dict[str, Any] = {
        **config.model_dump(mode="json", include={"search", "prompt", "seed"}),
        "problems": inputs.problem_set.spec,
        GRADER_KEY: inputs.problem_set.grader,
        STOP_KEY: list(inputs.prompter.stop),
    }
    search["prompt"] = recorded(search["prompt"])
    if config.search.uses_action_prompts:
        search["action_prompts"] = dict(inputs.action_prompts.texts)
    seen: dict[str, Any] = {"teacher": inputs.teacher, "search": search}
    if not as_typed:
        seen = mapped(seen, absolute)
    return StoreMeta(
        tokenizer_fingerprint=inputs.tokenizer.fingerprint,
        teacher=seen["teacher"],
        search=seen["search"],
        separator=config.search.separator,
        vocabulary_size=inputs.tokenizer.vocabulary_size,
    )


async def _search(
    config: BuildConfig,
    inputs: _Inputs,
    meta: StoreMeta,
    first: int,
    notify: Notify,
    on_progress: OnProgress,
    start_engine: StartEngine,
) -> None:
    todo = inputs.problem_set.problems[first:]
    prompts = {problem.id: inputs.prompter(problem) for problem in todo}
    longest, scores = max(map(len, prompts.values())), config.search.uses_action_prompts
    if scores:  # room for the prompts of the actions, and for the one token that follows a solution when it is scored
        longest = max([longest + 1, *(inputs.action_prompts.longest(problem.question) for problem in todo)])
    options = replace(
        config.engine,
        max_model_tokens=longest + config.search.max_solution_tokens,
        threads=engine_share(config.engine.threads, inputs.teacher),
    )
    problem_set = inputs.problem_set
    golds = [problem.answer for problem in problem_set]
    unreadable = await unreadable_golds(problem_set.grader, config.grading, golds, notify)
    stages.enter("starting the teacher's engine")
    engine = await start_engine(inputs.teacher, options, None)
    began = time.monotonic()
    there = store_exists(config.output)
    try:
        async with open_grader(problem_set.grader, config.grading, unreadable=unreadable) as grader:
            with (
                open_writer(config.output) if there else create_writer(config.output, meta) as writer,
                _journal(config, meta) as journal,
            ):
                if meta.vocabulary_size is not None:
                    writer.widen(meta.vocabulary_size)  # an earlier version counted the tokenizer's tokens alone
                if journal is not None and journal.replayed:
                    notify(f"{journal.replayed:,} completions are known from before the build was stopped")
                await build_trees(
                    problem_set.problems,
                    first,
                    lambda problem: prompts[problem.id],
                    engine,
                    grader,
                    inputs.tokenizer,
                    config.search,
                    config.seed,
                    writer.append,
                    concurrency=config.concurrency,
                    on_progress=lambda progress: on_progress(progress, len(prompts), time.monotonic() - began),
                    answer=grader.answer,
                    prompts=inputs.action_prompts,
                    score=engine if scores else None,
                    journal=journal,
                )
    finally:
        await engine.close()


def _journal(config: BuildConfig, meta: StoreMeta) -> AbstractContextManager[Journal | None]:
    """The journal beside a local store; a store that is a URL has none, for most such places cannot be appended to."""
    if not isinstance(config.output, Path):
        return nullcontext()
    path = config.output.with_name(f"{config.output.name}.journal")
    return Journal(path, json.dumps(asdict(meta), sort_keys=True, default=str))
