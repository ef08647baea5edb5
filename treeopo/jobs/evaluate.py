"""`treeopo eval`: accuracy of one model, or of two on the same problems.

problem sets ─▶ prompts ─▶ engine (one a base model) ─▶ grader ─▶ scores ─▶ intervals and differences
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from treeopo_storage import StoreError, open_store

from treeopo import stages, tasks
from treeopo.config import EvalConfig
from treeopo.engines.launch import StartEngine, start_engine
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.errors import require
from treeopo.evaluation.accuracy import EvalProgress, Graded, Question, Scores, complete_and_grade
from treeopo.evaluation.answers import Answers
from treeopo.evaluation.comparison import Evaluation, compare_models
from treeopo.inspect.tokens import missing_opening
from treeopo.places import Kind, absolute, mapped
from treeopo.ports import Engine, Notify
from treeopo.problems.graders import open_grader, unreadable_golds
from treeopo.problems.problem_set import ProblemSet
from treeopo.problems.prompting import recorded
from treeopo.problems.protocols import PROTOCOLS
from treeopo.problems.spec import load_problem_set
from treeopo.run.directory import RunDirectory
from treeopo.run.models import BASE, ModelRef, adapters, check_servable, embedded, resolve, serve
from treeopo.run.questions import make_questions
from treeopo.threads import engine_share

OnCompletion = Callable[[str, str, Graded], None]
_TICK_SECONDS = 1.0
OnProgress = Callable[[EvalProgress], None]


def evaluate(
    config: EvalConfig,
    notify: Notify,
    on_progress: OnProgress,
    start_engine: StartEngine = start_engine,
) -> tuple[Evaluation, ...]:
    """Accuracy of the configured models; one evaluation per problem set.

    Written to `config.output` if that is given, from where a stopped evaluation goes on. `on_progress` is called as
    soon as an engine serves, every second, and after each completion.

    Raises:
        InputError: problems or models cannot be used, or the output holds another evaluation.
        EngineError: an engine failed; what it completed is kept.
    """
    problem_sets = [
        load_problem_set(spec, config.limit, config.grading.grader, "test") for spec in dict.fromkeys(config.problems)
    ]
    models = _models(config)
    check_servable(models, config.engine)
    with Answers(config.output, _question(config, models), earlier=_settings(config)) as answers:
        total = len(models) * sum(map(len, problem_sets)) * (1 + config.samples)
        meter = _Meter(EvalProgress(answers.done_count, total), on_progress)

        def on_completion(problems: str, model: str, graded: Graded) -> None:
            answers.add(problems, model, graded)
            meter.count(graded)

        scores = tasks.run(_evaluate(config, models, problem_sets, answers, notify, on_completion, meter, start_engine))
        labels = [model.label for model in models]
        evaluations = tuple(
            compare_models(problem_set.spec, labels, [scores[model, problem_set.spec] for model in models])
            for problem_set in problem_sets
        )
        answers.finish(evaluations)
    return evaluations


def _question(config: EvalConfig, models: Sequence[ModelRef]) -> dict[str, Any]:
    """What an evaluation asks, so that it goes on with that alone: places absolute, and which weights a run had."""
    weights = [str(absolute(Kind.MODEL, str(model.adapter or model.base))) for model in models]
    return {**mapped(_settings(config), absolute), "weights": weights}


def _settings(config: EvalConfig) -> dict[str, Any]:
    """The same as earlier versions kept it: places as they were typed."""
    settings = config.model_dump(exclude={"output": True, "engine": True, "grading": {"workers", "memory_mib"}})
    settings["prompt"] = recorded(settings["prompt"])
    if config.base is None:
        del settings["base"]  # evaluations that an earlier version began have no such setting
    if config.protocol is None:
        del settings["protocol"]
    if not config.grade_cut:
        del settings["grade_cut"]
    return settings


def _models(config: EvalConfig) -> list[ModelRef]:
    if config.model:
        first = resolve(config.model, config.base)
    else:
        first = ModelRef("embedded student", str(embedded(config.problems[0]).student))
    models = [first]
    if config.against is not None:
        models += [first.without_adapter() if config.against == BASE else resolve(config.against, config.base)]
    require(
        config.base is None or any(model.adapter for model in models),
        f"base {config.base} is the one of an adapter, and none is evaluated; leave it out",
    )
    return models


async def _evaluate(
    config: EvalConfig,
    models: Sequence[ModelRef],
    problem_sets: Sequence[ProblemSet],
    answers: Answers,
    notify: Notify,
    on_completion: OnCompletion,
    meter: "_Meter",
    start_engine: StartEngine,
) -> dict[tuple[ModelRef, str], Scores]:
    """Scores by model and problem set. Models of one base share an engine, the base itself first."""
    scores: dict[tuple[ModelRef, str], Scores] = {}
    unreadable = {
        problem_set.spec: await unreadable_golds(
            problem_set.grader, config.grading, [problem.answer for problem in problem_set], notify
        )
        for problem_set in problem_sets
    }
    for base in dict.fromkeys(model.base for model in models):
        of_base = sorted((model for model in models if model.base == base), key=lambda model: bool(model.adapter))
        asked = _asked(config, of_base, problem_sets, notify)
        longest = max(len(question.prompt_ids) for sets in asked.values() for _, some in sets for question in some)
        stages.enter(f"starting an engine for {base}")
        threads = engine_share(config.engine.threads, base)
        options = replace(config.engine, max_model_tokens=longest + config.max_new_tokens, threads=threads)
        engine = await start_engine(base, options, adapters(of_base))
        try:
            async with meter.of(engine):
                for version, model in enumerate(of_base, start=1):
                    await serve(engine, version, model, config.engine.trust_remote_code)
                    for problem_set, questions in asked[model]:
                        report = partial(on_completion, problem_set.spec, model.label)
                        done = answers.done(problem_set.spec, model.label)
                        scores[model, problem_set.spec] = await _score(
                            config, engine, problem_set.grader, questions, report, done, unreadable[problem_set.spec]
                        )
        finally:
            await engine.close()
    return scores


class _Meter:
    """Counts completions, what an engine has sampled where it tells, and the seconds in which one serves."""

    def __init__(self, progress: EvalProgress, on_progress: OnProgress) -> None:
        self._progress = progress
        self._on_progress = on_progress
        self._finished = 0  # tokens of the completions counted
        self._seconds: Callable[[], float] = lambda: 0.0

    @asynccontextmanager
    async def of(self, engine: Engine) -> AsyncIterator[None]:
        """Tell how far the evaluation is as long as `engine` serves: now, and at least every second."""
        earlier, began = self._progress, time.monotonic()
        self._seconds = lambda: earlier.seconds + time.monotonic() - began
        self._on_progress(self._progress)
        ticking = asyncio.create_task(self._tick(engine, earlier.tokens))
        try:
            yield
        finally:
            ticking.cancel()

    async def _tick(self, engine: Engine, earlier: int) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            self._tell(tokens=earlier + getattr(engine, "tokens", 0))  # not every engine counts

    def count(self, graded: Graded) -> None:
        self._finished += graded.tokens
        was = self._progress
        self._tell(done=was.done + 1, new=was.new + 1, reward=was.reward + graded.reward)

    def _tell(self, *, tokens: int = 0, **changes: Any) -> None:
        tokens = max(tokens, self._finished, self._progress.tokens)
        self._progress = replace(self._progress, tokens=tokens, seconds=self._seconds(), **changes)
        self._on_progress(self._progress)


def _asked(
    config: EvalConfig, models: Sequence[ModelRef], problem_sets: Sequence[ProblemSet], notify: Notify
) -> dict[ModelRef, list[tuple[ProblemSet, list[Question]]]]:
    """The problem sets as each model is asked them, by its own tokenizer and chat template."""
    told: set[str] = set()

    def once(notice: str) -> None:
        if notice not in told:
            told.add(notice)
            notify(notice)

    trust = config.engine.trust_remote_code
    tokenizers = {model.tokenizer: ModelTokenizer(model.tokenizer, trust, weights=model.base) for model in models}
    for model in models:
        tokenizer = tokenizers[model.tokenizer]
        for warning in filter(None, (_trained_on(model, tokenizer), _other_end(config, model, tokenizer))):
            notify(warning)
    protocol = PROTOCOLS.get(config.protocol or "")
    asked = {
        name: [(each, make_questions(tokenizer, config.prompt, each, once, protocol)) for each in problem_sets]
        for name, tokenizer in tokenizers.items()
    }
    return {model: asked[model.tokenizer] for model in models}


def _other_end(config: EvalConfig, model: ModelRef, tokenizer: ModelTokenizer) -> str | None:
    """A warning, if the adapter's tokenizer ends a text by another token than the base's, which the engine stops at."""
    if model.tokenizer == model.base:
        return None
    base = ModelTokenizer(model.base, config.engine.trust_remote_code)
    if tokenizer.eos_token_id in base.end_token_ids:
        return None
    return (
        f"{model.label}: its tokenizer ends a text with {tokenizer.hf.eos_token!r}, and the engine stops at the base's "
        f"{base.hf.eos_token!r}; to stop at its own, evaluate what treeopo export {model.label} --merge DIR writes"
    )


def _trained_on(model: ModelRef, tokenizer: ModelTokenizer) -> str | None:
    """A warning, if `model` is a run that learned from prompts which begin otherwise than those it is now asked."""
    path = Path(model.label)
    if not RunDirectory.is_at(path):
        return None
    own, given = path / "retokenized.zarr", RunDirectory.open(path).config.store
    try:
        trees = open_store(own if own.exists() else given) if given is not None else None
    except StoreError:
        return None  # it was moved or removed since
    if trees is None or trees.meta.tokenizer_fingerprint != tokenizer.fingerprint:
        return None
    return missing_opening(trees, tokenizer)


async def _score(
    config: EvalConfig,
    engine: Engine,
    grader_name: str,
    questions: Sequence[Question],
    on_completion: Callable[[Graded], None],
    done: dict[tuple[str, int], Graded],
    unreadable: dict[str, int],
) -> Scores:
    """One model on one problem set, by what the engine serves."""
    async with open_grader(grader_name, config.grading, unreadable=unreadable) as grader:
        scores = await complete_and_grade(
            questions,
            engine,
            grader,
            grader.answer,
            max_new_tokens=config.max_new_tokens,
            samples=config.samples,
            seed=config.seed,
            grade_cut=config.grade_cut,
            on_completion=on_completion,
            done=done,
        )
        return replace(scores, grader=grader.take_counts())
