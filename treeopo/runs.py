"""The composition root: settings in, adapters wired, stages started.

    build_store   problems ─▶ search (teacher engine) ─▶ tree store
    train         tree store ─▶ sampler ─▶ student engine ─▶ grader ─▶ advantages ─▶ learner ─▶ publish
                  (the stages that the method needs: `treeopo.methods` names its parts, `treeopo.recipes` makes them)

Each returns when its output is complete on disk. torch and vLLM are imported when a function first needs them.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from treeopo_storage import StoreMeta, TreeStore, create_store, open_store, open_writer
from treeopo_storage.retokenize import check_tokenizer, retokenize, retokenized_meta

from treeopo.config import BuildConfig, EvalConfig
from treeopo.engines.in_process import VllmEngine
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.errors import DivergedError, ProblemError, RunError
from treeopo.evaluation.accuracy import Graded, Question, Scores
from treeopo.evaluation.accuracy import evaluate as score
from treeopo.evaluation.answers import Answers
from treeopo.evaluation.comparison import Evaluation, compare
from treeopo.inspection import overview
from treeopo.learner.batch_file import write_batch
from treeopo.learner.checkpoints import Checkpoints
from treeopo.methods import Need, find_method
from treeopo.metrics import JsonLinesSink, TensorBoardSink, read_metrics
from treeopo.ports import MetricSink
from treeopo.problems.grader import Grader, open_grader
from treeopo.problems.problem_set import ProblemSet
from treeopo.problems.prompting import Prompter, PromptSettings
from treeopo.problems.settings import GRADER_KEY, Family, GradingSettings
from treeopo.problems.spec import difficulty_of, load_problem_set
from treeopo.recipes import Recipe, Running, family, objectives, recipe
from treeopo.records import TrainBatch
from treeopo.rollout.meter import EngineMeter
from treeopo.rollout.pipeline import Metrics, Pipeline, Stages
from treeopo.run_directory import RunDirectory
from treeopo.search.build import BuildProgress, build_trees
from treeopo.search.report import TreeReport
from treeopo.serving import BASE, Served, resolve, serve
from treeopo.signals import StopRequest

if TYPE_CHECKING:
    from treeopo.learner.thread import LearnerThread
    from treeopo.tiny import TinyModels

Notify = Callable[[str], None]
"""Told in a few words what comes next, where that takes seconds."""


def build_store(
    config: BuildConfig, notify: Notify, on_progress: Callable[[BuildProgress, int, float], None]
) -> TreeReport:
    """Search the configured problems with the teacher, or what an earlier build left of them.

    `on_progress(progress, problems to do, seconds so far)` is called after each problem. A stopped build has committed
    every problem before the first unfinished one, and continues there when called again.

    Raises:
        InputError: problems, teacher or settings cannot be used, or the store was built with others.
        EngineError: the teacher's engine failed; what was finished is committed.
    """
    teacher = config.teacher or str(embedded(config.problems).teacher)
    problem_set = load_problem_set(config.problems, config.limit, config.grading.family)
    tokenizer = ModelTokenizer(teacher)
    meta = StoreMeta(
        tokenizer_fingerprint=tokenizer.fingerprint,
        teacher=teacher,
        search={
            **config.model_dump(mode="json", include={"search", "prompt", "seed"}),
            "problems": problem_set.spec,
            GRADER_KEY: problem_set.family.value,
        },
        separator=config.search.separator,
        vocabulary_size=tokenizer.vocabulary_size,
    )
    first = 0
    if config.output.exists():
        with open_writer(config.output) as writer:  # also refuses now, not after a minute, if another process writes
            first = writer.problem_count
            if writer.meta != meta:
                raise RunError(f"{config.output}: built with other settings; use the same, or choose another --output")
    if first < len(problem_set):
        notify("starting the teacher's engine")
        search = partial(_search, config, meta, tokenizer, problem_set, first, on_progress)
        asyncio.run(_graded(problem_set.family, config.grading, search))
    return overview(config.output)[1]


async def _graded(family: Family, settings: GradingSettings, work: Callable[[Grader], Awaitable[None]]) -> None:
    async with open_grader(family, settings) as grader:
        await work(grader)


async def _search(
    config: BuildConfig,
    meta: StoreMeta,
    tokenizer: ModelTokenizer,
    problem_set: ProblemSet,
    first: int,
    on_progress: Callable[[BuildProgress, int, float], None],
    grader: Grader,
) -> None:
    prompter = Prompter(tokenizer, config.prompt, problem_set.template)
    prompts = {problem.id: prompter(problem) for problem in problem_set.problems[first:]}
    room = max(map(len, prompts.values())) + config.search.max_solution_tokens
    engine = VllmEngine.start(meta.teacher, replace(config.engine, max_model_tokens=room))
    began = time.monotonic()
    try:
        if not config.output.exists():
            create_store(config.output, meta)
        with open_writer(config.output) as writer:
            await build_trees(
                problem_set.problems,
                first,
                lambda problem: prompts[problem.id],
                engine,
                grader,
                tokenizer,
                config.search,
                config.seed,
                writer.append,
                concurrency=config.concurrency,
                on_progress=lambda progress: on_progress(progress, len(prompts), time.monotonic() - began),
            )
    finally:
        await engine.close()


@dataclass(frozen=True, slots=True)
class TrainSummary:
    """How a run stands: `steps` taken of those asked for. `informative_steps` had a gradient to follow; `max_staleness`
    is over every token trained on; peaks are of memory (the engine's is 0 where the method has none); `material` says
    what there was to learn from.
    """

    steps: int
    complete: bool
    informative_steps: int
    max_staleness: int
    learner_peak_mib: float
    engine_peak_mib: float
    material: str
    adapter: Path


def train(run: RunDirectory, notify: Notify, on_step: Callable[[int, Metrics], None]) -> TrainSummary:
    """Train the configured student by the configured method, from the newest checkpoint of the run if it has one.

    SIGINT and SIGTERM end the run after the step under way, with a checkpoint. A complete run is only summed up.

    Raises:
        InputError: student, store or settings cannot be used.
        EngineError: the student's engine failed; the run continues from its newest checkpoint when called again.
        DivergedError: losses were not finite several steps in a row; policy and batch of the last one are kept.
    """
    config = run.config
    store: TreeStore = open_store(config.store)
    student = config.student or str(embedded(str(store.meta.search.get("problems", ""))).student)
    tokenizer = ModelTokenizer(student)
    if config.retokenize and tokenizer.fingerprint != store.meta.tokenizer_fingerprint:
        run.begin()
        store = _retokenized(store, run.path / "retokenized.zarr", tokenizer, notify)
    check_tokenizer(store.meta, tokenizer.fingerprint)
    parts = recipe(config, store)
    run.begin()
    if not run.is_complete:
        steps_taken = partial(_train, run, student, tokenizer, parts, notify, on_step)
        asyncio.run(_graded(family(config, store), config.grading, steps_taken))
    steps = read_metrics(run.metrics)
    return TrainSummary(
        steps=len(steps),
        complete=run.is_complete,
        informative_steps=sum(step.get("grad_norm", 0.0) > 0 for step in steps),
        max_staleness=int(max(step.get("staleness_max", 0) for step in steps)),
        learner_peak_mib=max(step["learner_peak_mib"] for step in steps),
        engine_peak_mib=max(step.get("engine_peak_mib", 0.0) for step in steps),
        material=parts.material,
        adapter=run.adapter,
    )


async def _train(
    run: RunDirectory,
    student: str,
    tokenizer: ModelTokenizer,
    parts: Recipe,
    notify: Notify,
    on_step: Callable[[int, Metrics], None],
    grader: Grader,
) -> None:
    from treeopo.learner.thread import LearnerThread

    config = run.config
    notify("loading the student")
    learner = await LearnerThread.start(
        student,
        config.learner,
        partial(objectives, config),
        Checkpoints(run.checkpoints, config.checkpoints_kept),
        steps=config.steps,
        temperature=config.rollout.temperature,
        seed=config.seed,
    )
    engine: VllmEngine | None = None
    if Need.ENGINE in find_method(config.method).needs:
        notify("starting the student's engine")
        engine = VllmEngine.start(student, replace(config.engine, max_model_tokens=config.rollout.max_sequence_tokens))
    sinks: list[MetricSink] = [
        JsonLinesSink(run.metrics, learner.version),
        TensorBoardSink(run.tensorboard, learner.version),
    ]

    async def publish(version: int) -> None:
        if engine is None:
            return  # nobody samples from the policy
        with TemporaryDirectory(dir=run.path, prefix=".policy-") as directory:
            weights = Path(directory) / "policy.safetensors"
            await learner.save_merged(weights)
            await engine.publish(version, weights)

    async def after_step(version: int, metrics: Metrics) -> bool:
        if engine is not None:
            metrics["engine_peak_mib"] = engine.peak_memory_mib()
        metrics |= grader.take_counts()
        for sink in sinks:
            sink.write(version, metrics)
        on_step(version, metrics)
        if stop.requested or version == config.steps or version % config.checkpoint_every == 0:
            await learner.checkpoint()
        return not stop.requested

    meter = EngineMeter(config.engine.max_concurrent)
    stages = Stages(parts.bind(Running(learner, engine, meter, grader)), partial(_learn, learner, run), publish)
    try:
        with StopRequest() as stop:
            if learner.version > 0:
                await publish(learner.version)
            pipeline = Pipeline(stages, config.rollout.max_staleness, meter)
            await pipeline.run(learner.version, config.steps, after_step)
            if learner.version == config.steps:
                await learner.export(run.adapter, tokenizer.hf.save_pretrained)
    finally:
        for sink in sinks:
            sink.close()
        learner.close()
        if engine is not None:
            await engine.close()


async def _learn(learner: "LearnerThread", run: RunDirectory, batch: TrainBatch) -> Metrics:
    """One step; where losses are not finite for too long, the policy and the batch of the last one are kept."""
    try:
        return await learner.step(batch)
    except DivergedError as error:
        kept = write_batch(run.path / f"diverged-batch-{batch.number:06d}.npz", batch)
        await learner.checkpoint()
        raise DivergedError(f"{error}: {kept}, for the policy of the newest checkpoint") from None


def _retokenized(store: TreeStore, path: Path, tokenizer: ModelTokenizer, notify: Notify) -> TreeStore:
    """A copy of `store` at `path` under the student's tokenizer, made anew unless an earlier start finished it."""
    if not path.exists() or open_store(path).problem_count < store.problem_count:
        rmtree(path, ignore_errors=True)
        create_store(path, retokenized_meta(store.meta, tokenizer.fingerprint, tokenizer.vocabulary_size))
        with open_writer(path) as writer:
            done = retokenize(store, writer, tokenizer.encode, lambda ids: tokenizer.decode(list(ids)))
        notify(f"{done.prefixes} prefixes re-tokenised, {done.changed} no longer decode to their text")
    return open_store(path)


def embedded(problems: str) -> "TinyModels":
    """The embedded student and teacher that belong to a problem set, made now if this machine has not made them yet."""
    from treeopo.tiny import ensure_tiny

    return ensure_tiny(difficulty_of(problems))


def evaluate(config: EvalConfig, notify: Notify, on_progress: Callable[[int, int], None]) -> tuple[Evaluation, ...]:
    """Accuracy of one model, or of two on the same problems; one evaluation per problem set.

    Written to `config.output` if that is given, from where a stopped evaluation goes on. `on_progress(done, total)`
    counts completions over all models and sets.

    Raises:
        InputError: problems or models cannot be used, or the output holds another evaluation.
        EngineError: an engine failed; what it completed is kept.
    """
    problem_sets = [
        load_problem_set(spec, config.limit, config.grading.family, "test") for spec in dict.fromkeys(config.problems)
    ]
    first = resolve(config.model) if config.model else _embedded_student(config.problems[0])
    models = [first]
    if config.against is not None:
        models.append(first.without_adapter() if config.against == BASE else resolve(config.against))
    settings = config.model_dump(mode="json", exclude={"output", "engine"})
    with Answers(config.output, settings) as answers:
        total = len(models) * sum(map(len, problem_sets)) * (1 + config.samples)
        done = count(answers.done_count + 1)

        def on_completion(problems: str, model: str, graded: Graded) -> None:
            answers.add(problems, model, graded)
            on_progress(next(done), total)

        scores = asyncio.run(_evaluate(config, models, problem_sets, answers, notify, on_completion))
        labels = [model.label for model in models]
        evaluations = tuple(
            compare(problem_set.spec, labels, [scores[model, problem_set.spec] for model in models])
            for problem_set in problem_sets
        )
        answers.finish(evaluations)
    return evaluations


def _embedded_student(problems: str) -> Served:
    return Served("embedded student", str(embedded(problems).student))


async def _evaluate(
    config: EvalConfig,
    models: Sequence[Served],
    problem_sets: Sequence[ProblemSet],
    answers: Answers,
    notify: Notify,
    on_completion: Callable[[str, str, Graded], None],
) -> dict[tuple[Served, str], Scores]:
    """Scores by model and problem set. Models of one base share an engine, the base itself first."""
    scores: dict[tuple[Served, str], Scores] = {}
    for base in dict.fromkeys(model.base for model in models):
        tokenizer = ModelTokenizer(base)
        asked = [(problem_set, _questions(tokenizer, config.prompt, problem_set)) for problem_set in problem_sets]
        longest = max(len(question.prompt_ids) for _, questions in asked for question in questions)
        notify(f"starting an engine for {base}")
        engine = VllmEngine.start(base, replace(config.engine, max_model_tokens=longest + config.max_new_tokens))
        try:
            of_base = sorted((model for model in models if model.base == base), key=lambda model: bool(model.adapter))
            for version, model in enumerate(of_base, start=1):
                await serve(engine, version, model)
                for problem_set, questions in asked:
                    async with open_grader(problem_set.family, config.grading) as grader:
                        graded = await score(
                            questions,
                            engine,
                            grader,
                            problem_set.answer,
                            max_new_tokens=config.max_new_tokens,
                            samples=config.samples,
                            seed=config.seed,
                            on_completion=partial(on_completion, problem_set.spec, model.label),
                            done=answers.done(problem_set.spec, model.label),
                        )
                        scores[model, problem_set.spec] = replace(graded, grader=grader.take_counts())
        finally:
            await engine.close()
    return scores


def _questions(tokenizer: ModelTokenizer, settings: PromptSettings, problem_set: ProblemSet) -> list[Question]:
    """Raises `ProblemError` if there is no problem."""
    prompter = Prompter(tokenizer, settings, problem_set.template)
    questions = [Question(problem, prompter(problem), prompter.stop) for problem in problem_set]
    if not questions:
        raise ProblemError(f"{problem_set.spec}: there is no problem to evaluate on")
    return questions
