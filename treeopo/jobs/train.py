"""`treeopo train`: train the student on a tree store, or on worked solutions.

    settings ─▶ store and tokenizer ─▶ teacher, training data, held-out problems: all checked ─▶ `treeopo.run.start`

torchrun starts this job in several processes: the first one trains, the others follow its learner.
"""

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING

from treeopo_storage import IMPORTED, EmptyStoreError, TreeStore, new_store, open_store
from treeopo_storage.retokenize import check_tokenizer, retokenized_meta
from treeopo_storage.summary import identity

from treeopo import tasks
from treeopo.config import TrainConfig, differences
from treeopo.engines.launch import StartEngine, start_engine
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.errors import ConfigError, ModelError, RunError, require
from treeopo.evaluation.periodic import read_best
from treeopo.evaluation.settings import PeriodicSettings
from treeopo.inspect.tokens import canonical_prefixes, check_ids, missing_opening, retokenized
from treeopo.jobs.export import export_merged
from treeopo.methods import Need, find_method
from treeopo.places import kind_of
from treeopo.ports import Notify
from treeopo.problems.prompting import PromptSettings
from treeopo.problems.spec import load_problem_set
from treeopo.recipes.batches import grader_name, training_data
from treeopo.rollout.pipeline import Metrics
from treeopo.run.directory import RunDirectory
from treeopo.run.loop import HeldOut, OnStep
from treeopo.run.models import check_continues, check_whole, embedded
from treeopo.run.questions import make_questions
from treeopo.run.resume import length_notice
from treeopo.run.settled import PLACES, check_places
from treeopo.run.start import Inputs, run_training
from treeopo.trackers import check_trackers, read_metrics

if TYPE_CHECKING:
    from treeopo.learner.distributed import Team


@dataclass(frozen=True, slots=True)
class TrainSummary:
    """How a run stands: `steps` taken of those asked for. `informative_steps` had a gradient to follow; `max_staleness`
    is over every token trained on; peaks are of memory (the engine's is 0 where the method has none); `data` says what
    there was to learn from.
    """

    steps: int
    complete: bool
    informative_steps: int
    max_staleness: int
    learner_peak_mib: float
    engine_peak_mib: float
    data: str
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
    from treeopo.learner.follower import follow

    follow(Team.from_environment())
    return True


def train(run: RunDirectory, notify: Notify, on_step: OnStep, start_engine: StartEngine = start_engine) -> TrainSummary:
    """Train the configured student by the configured method, from the newest checkpoint of the run if it has one.

    SIGINT, SIGTERM and SIGHUP end the run after the step under way, with a checkpoint. A complete run is only summed
    up.

    Raises:
        InputError: student, store or settings cannot be used, or another process trains the run.
        EngineError: the student's engine failed; the run continues from its newest checkpoint when called again.
        DivergedError: losses were not finite several steps in a row; policy and batch of the last one are kept.
    """
    from treeopo.learner.distributed import Team

    run.refuse_another()
    config, team = run.config, Team.from_environment()
    require(
        run.is_complete or team.size > 1 or not config.learner.fsdp,
        "learner.fsdp cuts the base over several processes, and this is one; start it by torchrun --nproc-per-node N",
    )
    if run.is_complete:
        team.dismiss()
        return _sum_up(run, notify)
    check_trackers(config.trackers)
    with run.owned():
        return _train(run, notify, on_step, start_engine, team)


def _sum_up(run: RunDirectory, notify: Notify) -> TrainSummary:
    """How a complete run stands; what was changed of its settings is recorded."""
    notify(f"{run.path} is complete; it goes on if --steps is more than {run.config.steps}")
    with run.owned() if run.changes else nullcontext():
        inputs = _inputs(run, notify)
        run.check_identity(inputs.identity)
        if run.changes:
            run.begin()
        return _summary(run, inputs)


def _train(run: RunDirectory, notify: Notify, on_step: OnStep, start_engine: StartEngine, team: "Team") -> TrainSummary:
    """`train`, of a run that is not complete and is held against other processes."""
    inputs, method = _inputs(run, notify), find_method(run.config.method)
    if notice := length_notice(run):
        notify(notice)
    run.check_identity(inputs.identity)
    run.begin(inputs.identity)
    if inputs.teacher is not None and method.teacher_by is not None:
        require(team.size == 1, f"method {method.name} tunes its teacher in one process; start it without torchrun")
        first_stage = _first_stage(run, inputs.teacher)
        summary = train(first_stage, notify, _tenths(first_stage.config.steps, notify), start_engine)
        if not summary.complete:
            return summary
        inputs = replace(inputs, teacher=str(_merged_once(first_stage, run.path / "teacher-model")))
    tasks.run(run_training(run, inputs, notify, on_step, start_engine, team))
    return _summary(run, inputs)


def _inputs(run: RunDirectory, notify: Notify) -> Inputs:
    """What the run is about, checked before it begins."""
    config = run.config
    if not run.is_new:
        check_places(config, run.path, PLACES)
    store: TreeStore | None = None if config.store is None else open_store(config.store)
    known = {} if store is None else {"store": identity(store)}
    grader = grader_name(config, store)
    origin = config.solutions.problems if store is None else store.meta.search.get("problems")
    student = config.student or str(embedded(str(origin or "")).student)
    check_whole("student", student)
    check_continues("student", student, config.engine.trust_remote_code)
    tokenizer = ModelTokenizer(student, config.engine.trust_remote_code)
    if store is not None:
        store = _for_tokenizer(store, run, tokenizer, notify)
        if store.problem_count == 0:
            raise EmptyStoreError(f"{config.store}: holds no committed problem; go on with what was to fill it")
    return Inputs(
        student=student,
        teacher=_teacher(config, store, tokenizer),
        tokenizer=tokenizer,
        identity=known | {"tokenizer": tokenizer.fingerprint},
        store=store,
        data=training_data(config, store, tokenizer, notify),
        grader=grader,
        held_out=_held_out(config, tokenizer),
    )


def _summary(run: RunDirectory, inputs: Inputs) -> TrainSummary:
    steps = read_metrics(run.metrics)
    return TrainSummary(
        steps=max((step["step"] for step in steps), default=run.config.steps if run.is_complete else 0),
        complete=run.is_complete,
        informative_steps=sum(step.get("learner/grad_norm", 0.0) > 0 for step in steps),
        max_staleness=int(max((step.get("rollout/staleness_max", 0) for step in steps), default=0)),
        learner_peak_mib=max((step["learner/peak_mib"] for step in steps), default=0.0),
        engine_peak_mib=max((step.get("engine/peak_mib", 0.0) for step in steps), default=0.0),
        data=inputs.data.summary,
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
    check_whole("teacher", teacher)
    check_continues("teacher", teacher, config.engine.trust_remote_code)
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
        "rollouts_kept": TrainConfig.model_fields["rollouts_kept"].default,
    }
    stage = RunDirectory(path, config.model_copy(update=settings))
    was = differences(RunDirectory.open(path).config, stage.config) if stage.is_started else ()
    if any(kind_of(name) is None for name in was):  # places may have moved with the run
        raise RunError(f"{path}: was begun with other settings; choose another --output, or --resume {run.path}")
    return stage


def _tenths(steps: int, notify: Notify) -> Callable[[int, Metrics], None]:
    """Tells of every tenth part of a first stage."""
    every = max(1, steps // 10)

    def on_step(step: int, metrics: Metrics) -> None:
        if step % every == 0:
            notify(f"tuning the teacher: step {step} of {steps}, loss {metrics['learner/loss']:.4f}")

    return on_step


def _merged_once(run: RunDirectory, directory: Path) -> Path:
    if not directory.exists():
        export_merged(run.path, directory)
    return directory


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
    problem_set = load_problem_set(settings.problems, settings.limit, config.grading.grader, "test")
    questions = make_questions(tokenizer, PromptSettings(), problem_set)
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
        store = retokenized_copy(store, run.path / "retokenized.zarr", tokenizer, notify)
    check_tokenizer(store.meta, tokenizer.fingerprint)
    check_ids(store, tokenizer.vocabulary_size)
    if warning := missing_opening(store, tokenizer):
        notify(warning)
    notify(canonical_prefixes(store, tokenizer).told)
    return store


def retokenized_copy(store: TreeStore, path: Path, tokenizer: ModelTokenizer, notify: Notify) -> TreeStore:
    """A copy of `store` at `path` under the student's tokenizer, made anew unless an earlier start finished it."""
    if not path.exists() or open_store(path).problem_count < store.problem_count:
        rmtree(path, ignore_errors=True)
        meta = retokenized_meta(store.meta, tokenizer.fingerprint, tokenizer.vocabulary_size)
        with new_store(path, meta) as writer:
            for told in retokenized(store, writer, tokenizer):
                notify(told)
    return open_store(path)
