"""One training run under way: the pipeline's stages over a learner and an engine, and what follows each step.

make_batch   the method's (`treeopo.recipes`), over the engine if it needs one
learn        the learner's step; a batch that it cannot learn from is written down
publish      the policy to the engine, once no evaluation is under way on the one that serves
after_step   metrics, checkpoint, evaluation; says whether to go on
"""

import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING

import numpy as np

from treeopo.config import TrainConfig
from treeopo.engines.policy_files import PolicyFiles
from treeopo.engines.settings import Adapters, EngineOptions
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.errors import DivergedError, EngineDeadError, ModelError
from treeopo.evaluation.accuracy import Question, Scores, evaluate
from treeopo.evaluation.periodic import PeriodicEvaluation
from treeopo.learner.batch_file import write_batch
from treeopo.learner.checkpoints import Checkpoints
from treeopo.methods import Need, find_method
from treeopo.metrics import JsonLinesSink, TensorBoardSink, read_metrics
from treeopo.model_card import model_card
from treeopo.ports import Engine, MetricSink
from treeopo.problems.grader import Grader, open_grader
from treeopo.problems.problem_set import ProblemSet
from treeopo.recipes import Recipe, Running, objectives
from treeopo.records import TrainBatch
from treeopo.rollout.behaviour import Mismatch, compare
from treeopo.rollout.meter import EngineMeter, Idle, Metered
from treeopo.rollout.pipeline import Metrics, Pipeline, Stages
from treeopo.run_directory import RunDirectory
from treeopo.signals import StopRequest
from treeopo.tasks import patient_collector
from treeopo.timeline import Timeline

if TYPE_CHECKING:
    from treeopo.learner.distributed import Team
    from treeopo.learner.teacher import TeacherThread
    from treeopo.learner.thread import LearnerThread

Notify = Callable[[str], None]
"""Told in a few words what comes next, where that takes seconds."""

StartEngine = Callable[[str, EngineOptions, Adapters], Awaitable[Engine]]
"""Starts an engine that serves a base model (hub name or directory) as version 0, and takes policies of that form."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What a run is evaluated on beside training."""

    problem_set: ProblemSet
    questions: Sequence[Question]


@dataclass(slots=True)
class Training:
    """A run with its learner, and its engine if the method needs one; `close` leaves no process and no open file."""

    run: RunDirectory
    tokenizer: ModelTokenizer
    learner: "LearnerThread"
    engine: Engine | None
    teacher: "TeacherThread | Engine | None"
    on_step: Callable[[int, Metrics], None]
    meter: EngineMeter
    timeline: Timeline
    grader: Grader
    stop: StopRequest = field(default_factory=StopRequest)
    sinks: list[MetricSink] = field(default_factory=list)
    evaluation: PeriodicEvaluation | None = None
    policies: PolicyFiles | None = None
    lost: EngineDeadError | None = None
    compared: Mismatch | None = None

    async def to_the_end(self, parts: Recipe, held_out: HeldOut | None) -> None:
        """From the learner's version to the last step, or to a requested stop; then the finished adapter.

        Raises:
            EngineDeadError: the engine is lost for good; the steps taken so far are in a checkpoint.
        """
        try:
            await self._steps(parts, held_out)
        except EngineDeadError as error:
            if self.learner.version > 0:
                await self.learner.checkpoint()
            raise EngineDeadError(
                f"{error}; go on from step {self.learner.version} with --resume {self.run.path}"
            ) from None

    async def _steps(self, parts: Recipe, held_out: HeldOut | None) -> None:
        config, first = self.run.config, self.learner.version
        self.sinks += [JsonLinesSink(self.run.metrics, first), TensorBoardSink(self.run.tensorboard, first)]
        if held_out is not None:
            self.evaluation = self._periodic(held_out)
        running = Running(self.learner, self.engine, self.meter, self.grader, self.teacher)
        stages = Stages(parts.bind(running), self._learn, self._publish)
        with self.stop:
            if first > 0:
                await self._publish(first)
            if self.evaluation and first not in {row["step"] for row in read_metrics(self.run.evaluations)}:
                await self.evaluation.start(first)
            pipeline = Pipeline(stages, config.rollout.max_staleness, self.meter, self.timeline)
            await pipeline.run(first, config.steps, self._after_step)
            if self.evaluation:
                await self.evaluation.settled()
            if self.learner.version == config.steps:
                await self.learner.export(self.run.adapter, self._accompany)

    def _accompany(self, adapter: Path) -> None:
        """What belongs beside a trained adapter: its tokenizer, and a card instead of PEFT's empty one."""
        self.tokenizer.hf.save_pretrained(adapter)
        base = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
        (adapter / "README.md").write_text(model_card(self.run, base, "peft"), encoding="utf-8")

    async def close(self) -> None:
        if self.evaluation:
            await self.evaluation.cancel()
        for sink in self.sinks:
            sink.close()
        self.timeline.close()
        self.learner.close()
        if self.teacher is not None:
            await self.teacher.close()
        if self.engine is not None:
            await self.engine.close()
            rmtree(self.run.policies, ignore_errors=True)

    async def _learn(self, batch: TrainBatch) -> Metrics:
        first = self.compared is None and await self._compare(batch)
        try:
            metrics = await self.learner.step(batch)
            return metrics | self.compared.metrics() if first and self.compared else metrics
        except DivergedError as error:
            kept = write_batch(self.run.path / f"diverged-batch-{batch.number:06d}.npz", batch)
            await self.learner.checkpoint()
            raise DivergedError(f"{error}: {kept}, for the policy of the newest checkpoint") from None

    async def _compare(self, batch: TrainBatch) -> bool:
        """Refuse to learn from what was not sampled from the policy that the learner holds; True if compared.

        Raises:
            ModelError: engine and learner disagree by more than rounding.
        """
        settings = self.run.config.rollout.behaviour
        rows = [row for row in batch.sequences if row.completion_length and (row.versions == batch.number).all()]
        rows = rows[: settings.sequences]
        if self.engine is None or not rows:
            return False
        learner = np.concatenate(await self.learner.policy_logprobs(rows))
        self.compared = compare(np.concatenate([row.behaviour_logprobs for row in rows]), learner)
        complaint = self.compared.complaint(settings)
        if complaint:
            raise ModelError(complaint)
        return True

    async def _publish(self, version: int) -> None:
        if self.engine is None:
            return  # nobody samples from the policy
        try:
            if self.evaluation:
                await self.evaluation.settled()
            if self.policies is None:
                self.policies = PolicyFiles(self.engine, self.learner.save_policy, self.run.policies)
            await self.policies.publish(version)
        except EngineDeadError as error:
            self.lost = error  # the step has been taken: its metrics come first

    async def _after_step(self, version: int, metrics: Metrics) -> bool:
        config = self.run.config
        if self.engine is None:
            metrics = {name: value for name, value in metrics.items() if not name.startswith(("engine_", "rollout_"))}
        else:
            metrics["engine_peak_mib"] = self.engine.peak_memory_mib()
            metrics["engine_restarts"] = float(self.engine.restarts)
        metrics |= self.grader.take_counts()
        for sink in self.sinks[:2]:
            sink.write(version, metrics)
        self.on_step(version, metrics)
        if self.lost:
            raise self.lost
        if self.stop.requested or version == config.steps or version % config.checkpoint_every == 0:
            with self.timeline.span("learner", "checkpoint", version=version):
                await self.learner.checkpoint()
        if self.evaluation:
            await self.evaluation.start(version)
        return not self.stop.requested

    def _periodic(self, held_out: HeldOut) -> PeriodicEvaluation:
        config, engine = self.run.config, self.engine
        assert engine is not None, "held-out problems were prepared for a method without an engine"
        self.sinks.append(JsonLinesSink(self.run.evaluations, self.learner.version))
        longest = max(len(question.prompt_ids) for question in held_out.questions)

        async def score() -> Scores:
            with self.meter.because(Idle.EVALUATING), self.timeline.span("evaluation", "held-out problems"):
                async with open_grader(held_out.problem_set.family, config.grading) as grader:
                    return await evaluate(
                        held_out.questions,
                        Metered(engine, self.meter),
                        grader,
                        held_out.problem_set.answer,
                        max_new_tokens=config.rollout.max_sequence_tokens - longest,
                        samples=0,
                        seed=config.seed,
                    )

        return PeriodicEvaluation(
            score, self.learner.save_adapter, self.sinks[1:], self.run.best, config.evaluation.every, config.steps
        )


async def run_training(
    run: RunDirectory,
    student: str,
    teacher: str | None,
    tokenizer: ModelTokenizer,
    parts: Recipe,
    held_out: HeldOut | None,
    notify: Notify,
    on_step: Callable[[int, Metrics], None],
    start_engine: StartEngine,
    team: "Team",
    grader: Grader,
) -> None:
    """Load student and teacher, start an engine if the method needs one, and train from the newest checkpoint on.

    Raises:
        InputError: student or teacher cannot be loaded or served.
        EngineError: the engine failed; the newest checkpoint is whole.
    """
    from treeopo.learner.thread import LearnerThread

    config = run.config
    checkpoints = Checkpoints(run.checkpoints, config.checkpoints_kept)
    notify("loading the student")
    team.send((student, teacher, config, checkpoints.latest()))
    learner = await LearnerThread.start(
        student,
        config.learner,
        partial(objectives, config, teacher),
        checkpoints,
        steps=config.steps,
        temperature=config.rollout.temperature,
        seed=config.seed,
        trust_remote_code=config.engine.trust_remote_code,
        team=team,
    )
    scorer: TeacherThread | Engine | None = None
    if teacher is not None and config.needs_scores:
        scorer = await _start_teacher(teacher, config, notify)
    engine: Engine | None = None
    if Need.ENGINE in find_method(config.method).needs:
        notify("starting the student's engine")
        options = replace(config.engine, max_model_tokens=config.rollout.max_sequence_tokens)
        # A batch begins at most max_staleness versions before it is learned from; one more is being published.
        adapters = Adapters(rank=config.learner.lora.rank, versions=config.rollout.max_staleness + 2)
        engine = await start_engine(student, options, adapters)
    timeline = Timeline.open(run.timeline, f"from step {learner.version}")
    meter = EngineMeter(config.engine.slots if engine else 0, timeline)
    training = Training(run, tokenizer, learner, engine, scorer, on_step, meter, timeline, grader)
    try:
        with patient_collector():
            await training.to_the_end(parts, held_out)
    finally:
        await training.close()


async def _start_teacher(teacher: str, config: TrainConfig, notify: Notify) -> "TeacherThread | Engine":
    """The teacher's log-probabilities: from its servers if it has some, or else from a thread beside the learner's.

    Raises:
        InputError: it cannot be loaded, or a server cannot be used. EngineDeadError: a server cannot be reached.
    """
    if config.teacher_urls:
        from treeopo.engines.launch import start_engine

        notify("asking the teacher's servers")
        room = config.rollout.max_sequence_tokens + 1  # vLLM samples one token after those it scores
        return await start_engine(teacher, replace(config.engine, urls=config.teacher_urls, max_model_tokens=room))
    from treeopo.learner.teacher import TeacherThread

    notify("loading the teacher")
    return await TeacherThread.start(teacher, config.learner, config.engine.trust_remote_code)


def follow(team: "Team") -> None:
    """What every process of a team but its first does: build the same learner and do with it what the first one does,
    until dismissed.

    Raises:
        ModelError: the student cannot be loaded here.
    """
    import torch

    from treeopo.learner.thread import load_learner

    order = team.receive()
    if order is None:
        return
    student, teacher, config, checkpoint = order
    torch.set_num_threads(config.learner.threads)
    learner = load_learner(
        student,
        config.learner,
        partial(objectives, config, teacher),
        checkpoint,
        steps=config.steps,
        temperature=config.rollout.temperature,
        seed=config.seed,
        trust_remote_code=config.engine.trust_remote_code,
        team=team,
    )
    while (call := team.receive()) is not None:
        method, argument = call
        with suppress(DivergedError):  # the first process knows too, and writes it down
            method(learner, argument)
    team.part()
