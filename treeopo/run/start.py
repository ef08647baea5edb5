"""Everything a run needs, loaded and started in order, and closed in the reverse one.

learner ─▶ trackers ─▶ rollouts on disk ─▶ teacher that scores, if any ─▶ engine, if any ─▶ grader ─▶ TrainingLoop
"""

from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from shutil import rmtree
from typing import TYPE_CHECKING

from treeopo_storage import TreeStore

from treeopo import stages
from treeopo.config import TrainConfig
from treeopo.engines.launch import StartEngine
from treeopo.engines.settings import Adapters
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.learner.checkpoints import Checkpoints
from treeopo.methods import Need, find_method
from treeopo.ports import Engine, Notify
from treeopo.problems.graders import open_grader, unreadable_golds
from treeopo.recipes.batches import Services, TrainingData
from treeopo.recipes.losses import make_losses
from treeopo.rollout.meter import EngineMeter
from treeopo.run.directory import RunDirectory
from treeopo.run.kept_rollouts import KeptRollouts
from treeopo.run.loop import HeldOut, OnStep, TrainingLoop
from treeopo.tasks import patient_collector
from treeopo.threads import engine_share, share
from treeopo.timeline import Timeline
from treeopo.trackers import RunInfo, open_trackers

if TYPE_CHECKING:
    from treeopo.learner.distributed import Team
    from treeopo.learner.teacher import TeacherThread


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a run is about, checked: student and teacher by name, what they learn from and are evaluated on. identity
    tells, by what it is, whether a run goes on with the store and tokenizer that it began with. grader is
    the name of the one that grades rollouts; teacher is None where the method needs none, store where it learns from a
    problem set.
    """

    student: str
    teacher: str | None
    tokenizer: ModelTokenizer
    identity: Mapping[str, str]
    store: TreeStore | None
    data: TrainingData
    grader: str
    held_out: HeldOut | None


async def run_training(
    run: RunDirectory, inputs: Inputs, notify: Notify, on_step: OnStep, start_engine: StartEngine, team: "Team"
) -> None:
    """Load student and teacher, start an engine if the method needs one, and train from the newest checkpoint on.

    Raises:
        InputError: student or teacher cannot be loaded or served.
        EngineError: the engine failed; the newest checkpoint is whole.
    """
    from treeopo.learner.spec import LearnerSpec
    from treeopo.learner.thread import LearnerThread

    config = _with_threads(run.config, inputs)
    spec = LearnerSpec(
        model=inputs.student,
        settings=config.learner,
        losses=partial(make_losses, config, inputs.teacher),
        steps=config.steps,
        temperature=config.rollout.temperature,
        seed=config.seed,
        trust_remote_code=config.engine.trust_remote_code,
        served_dtype=config.engine.own_dtype,
    )
    unreadable, held_out = await _unreadable(inputs, config, notify)
    async with AsyncExitStack() as stack:
        stages.enter("loading the student")
        checkpoints = Checkpoints(run.checkpoints, config.checkpoints_kept)
        learner = await LearnerThread.start(spec, checkpoints, team, notify)
        stack.callback(learner.close)
        if inputs.data.memory is not None:
            inputs.data.memory.resume(checkpoints.latest(), learner.version)
            learner.checkpoint_beside(inputs.data.memory.snapshot)
        info = RunInfo(run.path, run.path.name, config.model_dump(mode="json"), learner.version)
        trackers = open_trackers(config.trackers, info, run.metrics, run.evaluations, run.tensorboard)
        stack.callback(trackers.close)
        kept = _keep_rollouts(run, inputs, learner.version)
        if kept is not None:
            stack.callback(kept.close)
        scorer = await _start_teacher(inputs.teacher, config, start_engine)
        if scorer is not None:
            stack.push_async_callback(scorer.close)
        engine = await _start_engine(inputs.student, config, start_engine)
        if engine is not None:
            stack.callback(rmtree, run.policies, ignore_errors=True)
            stack.push_async_callback(engine.close)
        grader = await stack.enter_async_context(
            open_grader(inputs.grader, config.grading, config.needs_binary, unreadable)
        )
        timeline = Timeline.open(run.timeline, f"from step {learner.version}")
        stack.callback(timeline.close)
        meter = EngineMeter(config.engine.slots if engine else 0, timeline)
        keep = kept.take if kept is not None else None
        services = Services(engine, meter, timeline, grader, scorer, learner.reference_logprobs, keep)
        make_batch = inputs.data.batches(services)
        loop = TrainingLoop(run, inputs.tokenizer, learner, engine, grader, meter, timeline, trackers, on_step, kept)
        with patient_collector():
            await loop.to_the_end(make_batch, held_out)


def _with_threads(config: TrainConfig, inputs: Inputs) -> TrainConfig:
    """The settings with a number of threads for each side that this run starts here: learner, engine, teacher."""
    has_engine = Need.ENGINE in find_method(config.method).needs and not config.engine.urls
    sides = 1 + has_engine + (inputs.teacher is not None and config.needs_scores and not config.teacher_urls)
    learner = replace(config.learner, threads=share(config.learner.threads, sides))
    engine = replace(config.engine, threads=engine_share(config.engine.threads, inputs.student, sides))
    return config.model_copy(update={"learner": learner, "engine": engine})


async def _unreadable(inputs: Inputs, config: TrainConfig, notify: Notify) -> tuple[dict[str, int], HeldOut | None]:
    """Golds of the store that its grader cannot read, if the run grades, and the held-out problems with theirs."""
    held_out = inputs.held_out
    unreadable: dict[str, int] = {}
    if inputs.store is not None and Need.ENGINE in find_method(config.method).needs:
        unreadable = await unreadable_golds(inputs.grader, config.grading, inputs.store.answers(), notify)
    if held_out is not None:
        problem_set = held_out.problem_set
        golds = [problem.answer for problem in problem_set]
        of_it = await unreadable_golds(problem_set.grader, config.grading, golds, notify)
        held_out = replace(held_out, unreadable=of_it)
    return unreadable, held_out


def _keep_rollouts(run: RunDirectory, inputs: Inputs, resume_at: int) -> KeptRollouts | None:
    """Where the rollouts of steps after `resume_at` go; None where the run keeps none, or its method samples none."""
    newest = run.config.rollouts_kept
    if newest in (0, "none") or Need.ENGINE not in find_method(run.config.method).needs:
        return None
    assert inputs.store is not None, "methods of rollouts learn from a store"
    # Not ModelTokenizer.decode, which leaves out special tokens: a chat's turns are part of the prompt.
    decode = partial(inputs.tokenizer.hf.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return KeptRollouts(
        run.rollouts, None if newest == "all" else int(newest), resume_at, inputs.store.problem_id, decode
    )


async def _start_engine(student: str, config: TrainConfig, start_engine: StartEngine) -> Engine | None:
    """The engine that serves the student's policies; None where the method samples nothing."""
    if Need.ENGINE not in find_method(config.method).needs:
        return None
    stages.enter("starting the student's engine")
    options = replace(config.engine, max_model_tokens=config.rollout.max_sequence_tokens)
    # A batch begins at most max_staleness versions before it is learned from; one more is being published.
    adapters = Adapters(rank=config.learner.lora.rank, versions=config.rollout.max_staleness + 2)
    return await start_engine(student, options, adapters)


async def _start_teacher(
    teacher: str | None, config: TrainConfig, start_engine: StartEngine
) -> "TeacherThread | Engine | None":
    """Who gives the teacher's log-probabilities: its servers if it has some, or else a thread beside the learner's;
    None where nobody asks for them.

    Raises:
        InputError: it cannot be loaded, or a server cannot be used. EngineDeadError: a server cannot be reached.
    """
    if teacher is None or not config.needs_scores:
        return None
    if config.teacher_urls:
        stages.enter("asking the teacher's servers")
        room = config.rollout.max_sequence_tokens + 1  # vLLM samples one token after those it scores
        options = replace(config.engine, kind="server", urls=config.teacher_urls, max_model_tokens=room)
        return await start_engine(teacher, options, None)
    from treeopo.learner.teacher import TeacherThread

    stages.enter("loading the teacher")
    return await TeacherThread.start(teacher, config.learner, config.engine.trust_remote_code)
