"""The composition root: settings in, adapters wired, stages started.

    build_store   problems ─▶ search (teacher engine) ─▶ tree store
    train         tree store ─▶ sampler ─▶ student engine ─▶ grader ─▶ advantages ─▶ learner ─▶ publish
                  (the stages that the method needs: `treeopo.methods` names its parts, `treeopo.recipes` makes them)

Each returns when its output is complete on disk. torch and vLLM are imported when a function first needs them.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from treeopo_storage import IMPORTED, StoreMeta, TreeStore, create_store, open_store, open_writer
from treeopo_storage.retokenize import check_tokenizer, retokenize, retokenized_meta

from treeopo.config import BuildConfig, EvalConfig, TrainConfig
from treeopo.engines.launch import start_engine
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.errors import ConfigError, ModelError, ProblemError, RunError, require
from treeopo.evaluation.accuracy import Graded, Question, Scores
from treeopo.evaluation.accuracy import evaluate as score
from treeopo.evaluation.answers import Answers
from treeopo.evaluation.comparison import Evaluation, compare
from treeopo.evaluation.periodic import read_best
from treeopo.evaluation.settings import PeriodicSettings
from treeopo.inspection import overview
from treeopo.methods import Need, find_method
from treeopo.metrics import read_metrics
from treeopo.model_card import model_card
from treeopo.problems.grader import Grader, open_grader
from treeopo.problems.problem_set import ProblemSet
from treeopo.problems.prompting import STOP_KEY, Prompter, PromptSettings
from treeopo.problems.settings import GRADER_KEY, Family, GradingSettings
from treeopo.problems.spec import difficulty_of, load_problem_set
from treeopo.recipes import family, recipe
from treeopo.rollout.pipeline import Metrics
from treeopo.run_directory import RunDirectory
from treeopo.search.actions import ActionPrompts
from treeopo.search.build import BuildProgress, build_trees
from treeopo.search.report import TreeReport
from treeopo.serving import BASE, Served, adapters, resolve, serve
from treeopo.training import HeldOut, Notify, StartEngine, follow, run_training

if TYPE_CHECKING:
    from treeopo.tiny import TinyModels


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
    tokenizer = ModelTokenizer(teacher, config.engine.trust_remote_code)
    prompter = Prompter(tokenizer, config.prompt, problem_set)
    action_prompts = ActionPrompts(config.search, prompter.instruct)
    meta = StoreMeta(
        tokenizer_fingerprint=tokenizer.fingerprint,
        teacher=teacher,
        search={
            **config.model_dump(mode="json", include={"search", "prompt", "seed"}),
            "problems": problem_set.spec,
            GRADER_KEY: problem_set.family.value,
            STOP_KEY: list(prompter.stop),
            **({"action_prompts": dict(action_prompts.texts)} if config.search.asks_otherwise else {}),
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
        search = partial(_search, config, meta, tokenizer, problem_set, prompter, action_prompts, first, on_progress)
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
    prompter: Prompter,
    action_prompts: ActionPrompts,
    first: int,
    on_progress: Callable[[BuildProgress, int, float], None],
    grader: Grader,
) -> None:
    prompts = {problem.id: prompter(problem) for problem in problem_set.problems[first:]}
    longest, scores = max(map(len, prompts.values())), config.search.asks_otherwise
    if scores:  # room for the prompts of the actions, and for the one token that follows a solution when it is scored
        longest = max([longest + 1, *(action_prompts.longest(p.question) for p in problem_set.problems[first:])])
    options = replace(config.engine, max_model_tokens=longest + config.search.max_solution_tokens)
    engine = await start_engine(meta.teacher, options)
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
                answer=problem_set.answer,
                prompts=action_prompts,
                score=engine if scores else None,
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
    best: dict[str, float] | None  # version and figures of the best policy, if the run was evaluated


def follow_training() -> bool:
    """Whether torchrun started this process beside the one that runs the training; if so, that is over on return.

    Raises:
        ModelError: the student cannot be loaded here.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or int(os.environ.get("RANK", 0)) == 0:
        return False
    from treeopo.learner.distributed import Team

    follow(Team.from_environment())
    return True


def train(
    run: RunDirectory,
    notify: Notify,
    on_step: Callable[[int, Metrics], None],
    start_engine: StartEngine = start_engine,
) -> TrainSummary:
    """Train the configured student by the configured method, from the newest checkpoint of the run if it has one.

    SIGINT and SIGTERM end the run after the step under way, with a checkpoint. A complete run is only summed up.

    Raises:
        InputError: student, store or settings cannot be used.
        EngineError: the student's engine failed; the run continues from its newest checkpoint when called again.
        DivergedError: losses were not finite several steps in a row; policy and batch of the last one are kept.
    """
    from treeopo.learner.distributed import Team

    config, team = run.config, Team.from_environment()
    require(
        run.is_complete or team.size > 1 or not config.learner.fsdp,
        "learner.fsdp cuts the base over several processes, and this is one; start it by torchrun --nproc-per-node N",
    )
    store: TreeStore | None = None if config.store is None else open_store(config.store)
    origin = config.solutions.problems if store is None else store.meta.search.get("problems")
    student = config.student or str(embedded(str(origin or "")).student)
    tokenizer = ModelTokenizer(student, config.engine.trust_remote_code)
    if store is not None:
        store = _for_tokenizer(store, run, tokenizer, notify)
    teacher = _teacher(config, store, tokenizer)
    parts = recipe(config, store, tokenizer)
    held_out = _held_out(config, tokenizer)
    run.begin()
    if not run.is_complete:
        if teacher is not None and find_method(config.method).teacher_by is not None:
            require(
                team.size == 1, f"method {config.method} tunes its teacher in one process; start it without torchrun"
            )
            first_stage = _first_stage(run, teacher)
            summary = train(first_stage, notify, _tenths(first_stage.config.steps, notify), start_engine)
            if not summary.complete:
                return summary
            teacher = str(_merged_once(first_stage, run.path / "teacher-model"))
        training = partial(
            run_training, run, student, teacher, tokenizer, parts, held_out, notify, on_step, start_engine, team
        )
        asyncio.run(_graded(family(config, store), config.grading, training))
    else:
        team.dismiss()
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
        best=read_best(run.best),
    )


def _teacher(config: TrainConfig, store: TreeStore | None, tokenizer: ModelTokenizer) -> str | None:
    """The teacher's name, or None where the method needs none.

    Raises:
        ModelError: it does not read the student's tokens. ConfigError: nothing names one.
    """
    if Need.TEACHER not in find_method(config.method).needs:
        return None
    assert store is not None, "methods with a teacher learn from a store"
    own = store.meta.teacher if config.student else str(embedded(str(store.meta.search.get("problems", ""))).teacher)
    teacher = config.teacher or own
    if teacher == IMPORTED:
        raise ConfigError(f"{config.store}: was imported and names no teacher; give one by --set teacher=MODEL")
    if ModelTokenizer(teacher, config.engine.trust_remote_code).fingerprint != tokenizer.fingerprint:
        raise ModelError(f"teacher {teacher!r} has another tokenizer than the student; choose one of the same family")
    return teacher


def _first_stage(run: RunDirectory, teacher: str) -> RunDirectory:
    """The run within `run` that tunes its teacher, new or under way.

    Raises:
        RunError: one with other settings is there.
    """
    config, path = run.config, run.path / "teacher"
    settings = {
        "method": find_method(config.method).teacher_by,
        "student": teacher,
        "teacher": None,
        "teacher_steps": None,
        "steps": config.teacher_steps or config.steps,
        "output": path,
        "rollout": replace(config.rollout, temperature=1.0),
        "evaluation": PeriodicSettings(),
    }
    stage = RunDirectory(path, config.model_copy(update=settings))
    if stage.is_started and RunDirectory.open(path).config != stage.config:
        raise RunError(f"{path}: was begun with other settings; choose another --output, or --resume {run.path}")
    return stage


def _tenths(steps: int, notify: Notify) -> Callable[[int, Metrics], None]:
    """Tells of every tenth part of a first stage."""
    every = max(1, steps // 10)

    def on_step(step: int, metrics: Metrics) -> None:
        if step % every == 0:
            notify(f"tuning the teacher: step {step} of {steps}, loss {metrics['loss']:.4f}")

    return on_step


def _merged_once(run: RunDirectory, directory: Path) -> Path:
    if not directory.exists():
        export_merged(run, directory)
    return directory


def export_merged(run: RunDirectory, directory: Path) -> None:
    """Write the run's adapter (its newest checkpoint's, if it is not complete) merged into its base, with its card.

    Raises:
        RunError: the run has no adapter yet, or `directory` holds something or cannot be written.
        ModelError: the base cannot be loaded.
    """
    from treeopo.learner.export import save_merged_model

    trained = resolve(str(run.path))
    if trained.adapter is None:
        raise RunError(f"{run.path}: the run has taken no step yet; there is no adapter to merge")
    try:
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise RunError(f"{directory}: is there already; choose another directory for --merge")
        directory.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as beside:
            partial = Path(beside) / "model"
            save_merged_model(trained.base, trained.adapter, partial, run.config.engine.trust_remote_code)
            (partial / "README.md").write_text(model_card(run, trained.base, "transformers"), encoding="utf-8")
            os.replace(partial, directory)
    except OSError as error:
        raise RunError(f"{directory}: cannot be written ({error.strerror}); choose another --merge") from None


def _held_out(config: TrainConfig, tokenizer: ModelTokenizer) -> HeldOut | None:
    """What the run is evaluated on beside training, or None if nothing was asked for.

    Raises:
        InputError: it cannot be read, its prompts leave no room for an answer, or the method starts no engine.
    """
    settings = config.evaluation
    if settings.problems is None:
        return None
    if Need.ENGINE not in find_method(config.method).needs:
        raise ConfigError(
            f"evaluation.problems: method {config.method} starts no engine to evaluate with; leave it out and run "
            f"treeopo eval {config.output} afterwards"
        )
    problem_set = load_problem_set(settings.problems, settings.limit, config.grading.family, "test")
    questions = _questions(tokenizer, PromptSettings(), problem_set)
    longest = max(len(question.prompt_ids) for question in questions)
    if longest >= config.rollout.max_sequence_tokens:
        raise ConfigError(
            f"evaluation.problems: a prompt of {longest} tokens leaves no room in rollout.max_sequence_tokens "
            f"{config.rollout.max_sequence_tokens}"
        )
    return HeldOut(problem_set, questions)


def _for_tokenizer(store: TreeStore, run: RunDirectory, tokenizer: ModelTokenizer, notify: Notify) -> TreeStore:
    """The store as the student reads it: itself, or where that was asked for a copy under the student's tokenizer."""
    if run.config.retokenize and tokenizer.fingerprint != store.meta.tokenizer_fingerprint:
        run.begin()
        store = _retokenized(store, run.path / "retokenized.zarr", tokenizer, notify)
    check_tokenizer(store.meta, tokenizer.fingerprint)
    return store


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
    settings = config.model_dump(
        mode="json", exclude={"output": True, "engine": True, "grading": {"workers", "memory_mib"}}
    )
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
        tokenizer = ModelTokenizer(base, config.engine.trust_remote_code)
        asked = [(problem_set, _questions(tokenizer, config.prompt, problem_set)) for problem_set in problem_sets]
        longest = max(len(question.prompt_ids) for _, questions in asked for question in questions)
        notify(f"starting an engine for {base}")
        of_base = sorted((model for model in models if model.base == base), key=lambda model: bool(model.adapter))
        options = replace(config.engine, max_model_tokens=longest + config.max_new_tokens)
        engine = await start_engine(base, options, adapters(of_base))
        try:
            for version, model in enumerate(of_base, start=1):
                await serve(engine, version, model, config.engine.trust_remote_code)
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
    prompter = Prompter(tokenizer, settings, problem_set)
    questions = [Question(problem, prompter(problem), prompter.stop) for problem in problem_set]
    if not questions:
        raise ProblemError(f"{problem_set.spec}: there is no problem to evaluate on")
    return questions
