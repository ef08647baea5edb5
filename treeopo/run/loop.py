"""One training run under way: the pipeline's stages over a learner and an engine, and what follows each step.

make_batch   the method's (`treeopo.recipes.batches`), over the engine if it needs one
Learn        the learner's step; a batch that it cannot learn from is written down
Publish      the policy to the engine, once no evaluation is under way on the one that serves
after_step   metrics, checkpoint, evaluation; says whether to go on
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from treeopo import stages
from treeopo.engines.policy_files import PolicyFiles
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.errors import DivergedError, EngineDeadError, EngineError, ModelError, OutOfMemoryError
from treeopo.evaluation.accuracy import Question, Scores, complete_and_grade
from treeopo.evaluation.periodic import PeriodicEvaluation
from treeopo.learner.batch_file import write_batch
from treeopo.ports import Engine
from treeopo.problems.graders import OpenGrader, open_grader
from treeopo.problems.problem_set import ProblemSet
from treeopo.recipes.batches import MakeBatch
from treeopo.records import FloatArray, TrainBatch, TrainSequence
from treeopo.rollout.behaviour import (
    FEWEST_TOKENS,
    Agreement,
    BehaviourComparison,
    BehaviourWatch,
    behaviour_metrics,
    compare_behaviour,
)
from treeopo.rollout.meter import EngineMeter, Idle, Metered
from treeopo.rollout.pipeline import Metrics, Pipeline, Stages
from treeopo.run.card import model_card
from treeopo.run.directory import RunDirectory
from treeopo.run.due import CheckpointDue
from treeopo.run.kept_rollouts import KeptRollouts
from treeopo.run.signals import StopRequest
from treeopo.timeline import Timeline
from treeopo.trackers import RunTrackers
from treeopo.trackers.jsonl import read_metrics

if TYPE_CHECKING:
    from treeopo.learner.thread import LearnerThread

OnStep = Callable[[int, Metrics], None]
_UNSEEN_AT_MOST = 3
"""Batches in a row without tokens of the newest policy, after which the engine is asked for its log-probabilities."""

_SPENT = ("spent/completions", "spent/tokens")


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What a run is evaluated on beside training."""

    problem_set: ProblemSet
    questions: Sequence[Question]
    unreadable: Mapping[str, int] | None = None
    """Golds that its grader cannot read, and how often each occurs."""


class Learn:
    """The stage that learns from a batch. Before the first one engine and learner are compared; later their tokens of
    the newest version are, as the step has them, or where no batch has any, what the engine says of some sequences.
    """

    def __init__(self, run: RunDirectory, learner: "LearnerThread", engine: Engine | None) -> None:
        self._run = run
        self._learner = learner
        self._settings = run.config.rollout.behaviour
        self._engine = engine if self._settings.sequences else None
        self._watch: BehaviourWatch | None = None  # until the first comparison
        self._can_score = run.config.rollout.temperature == 1  # the only one that engines score at
        self._unseen = 0  # batches in a row without enough tokens of the newest version

    async def __call__(self, batch: TrainBatch) -> Metrics:
        """The step's metrics.

        Raises:
            ModelError: engine and learner disagree by more than rounding, before the first step. EngineError: later,
            again and again. DivergedError: losses were not finite again and again; policy and batch are kept.
        """
        is_first = self._watch is None
        comparison = await self._compare(batch)
        try:
            metrics = await self._learner.step(batch)
        except DivergedError as error:
            kept = write_batch(self._run.path / f"diverged-batch-{batch.number:06d}.npz", batch)
            await self._learner.checkpoint()
            raise DivergedError(f"{error}: {kept}, for the policy of the newest checkpoint") from None
        if is_first and self._watch and (of_the_batch := self._learner.agreement):
            self._watch.trust(of_the_batch)
        return metrics | (comparison or self._look_at_newest(batch))

    async def _compare(self, batch: TrainBatch) -> Metrics:
        """Refuse to learn from what was not sampled from the policy that the learner holds; empty if not compared."""
        rows = [row for row in batch.sequences if row.completion_length]
        if self._engine is None or not rows:
            return {}
        if self._watch is not None:
            return await self._score(batch.number, rows[: self._settings.sequences])
        rows = [row for row in rows if (row.versions == batch.number).all()][: self._settings.sequences]
        if not rows:
            return {}
        compared = await self._against_learner(rows, [row.behaviour_logprobs for row in rows])
        complaint = compared.complaint(self._settings)
        if complaint:
            raise ModelError(complaint)
        self._watch = BehaviourWatch(self._settings, compared)
        return compared.metrics()

    async def _score(self, version: int, rows: Sequence[TrainSequence]) -> Metrics:
        """Ask the engine, which serves `version` as the learner holds it, where the tokens have not told for long."""
        if self._engine is None or not self._can_score or self._unseen < _UNSEEN_AT_MOST:
            return {}
        try:
            scores = await self._engine.score([row.token_ids for row in rows], [row.prefix_length for row in rows])
        except EngineDeadError:
            raise
        except EngineError:  # it samples, but does not score
            self._can_score = False
            return {}
        compared = await self._against_learner(rows, scores)
        self._judge(version, compared)
        self._unseen = _UNSEEN_AT_MOST if self._watch and self._watch.doubts else 0
        return compared.metrics()

    def _look_at_newest(self, batch: TrainBatch) -> Metrics:
        """What the step found of the tokens that the newest version sampled."""
        found = self._learner.agreement
        if self._watch is None:
            return {}
        self._unseen = 0 if found and found.tokens >= FEWEST_TOKENS else self._unseen + 1
        if found is None:
            return {}
        self._judge(batch.number, found)
        return behaviour_metrics(found)

    async def _against_learner(
        self, rows: Sequence[TrainSequence], engine: Sequence[FloatArray]
    ) -> BehaviourComparison:
        learner = await self._learner.policy_logprobs(rows)
        return compare_behaviour(np.concatenate(engine), np.concatenate(learner))

    def _judge(self, version: int, found: Agreement) -> None:
        complaint = self._watch.judge(version, found) if self._watch else None
        if complaint:
            raise EngineError(complaint)


@dataclass(slots=True)
class TrainingLoop:
    """A run with its learner, and its engine if the method needs one. The caller closes what it put in."""

    run: RunDirectory
    tokenizer: ModelTokenizer
    learner: "LearnerThread"
    engine: Engine | None
    grader: OpenGrader
    meter: EngineMeter
    timeline: Timeline
    trackers: RunTrackers
    on_step: OnStep
    kept: KeptRollouts | None = None
    stop: StopRequest = field(default_factory=StopRequest)
    evaluation: PeriodicEvaluation | None = None
    policies: PolicyFiles | None = None
    lost: EngineDeadError | None = None
    spent: Counter[str] = field(default_factory=Counter)
    due: CheckpointDue = field(init=False)

    def __post_init__(self) -> None:
        self.due = CheckpointDue(self.run.config.checkpoint_every)

    async def to_the_end(self, make_batch: MakeBatch, held_out: HeldOut | None) -> None:
        """From the learner's version to the last step, or to a requested stop; then the finished adapter.

        Raises:
            EngineDeadError: the engine is lost for good. OutOfMemoryError: a step does not fit the memory. The steps
            taken so far are in a checkpoint.
        """
        if held_out is not None:
            self.evaluation = self._periodic(held_out)
        try:
            await self._steps(make_batch)
        except (EngineDeadError, OutOfMemoryError) as error:
            if self.learner.version > 0:
                await self.learner.checkpoint()
            raise type(error)(
                f"{error}; go on from step {self.learner.version} with --resume {self.run.path}"
            ) from None
        finally:
            if self.evaluation:
                await self.evaluation.cancel()

    async def _steps(self, make_batch: MakeBatch) -> None:
        config, first = self.run.config, self.learner.version
        for row in read_metrics(self.run.metrics):
            self.spent.update({name: row.get(name, 0.0) for name in _SPENT})
        learn = Learn(self.run, self.learner, self.engine)
        with self.stop:
            if first > 0:
                await self._publish(first)
            if self.evaluation and first not in {row["step"] for row in read_metrics(self.run.evaluations)}:
                await self.evaluation.start(first)
            steps = Stages(make_batch, learn, self._publish)
            pipeline = Pipeline(steps, config.rollout.max_staleness, self.meter, self.timeline)
            stages.enter(f"step {first + 1} of {config.steps}")
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
        if self.engine is not None:
            metrics["engine/peak_mib"] = self.engine.peak_memory_mib()
            metrics["engine/restarts"] = float(self.engine.restarts)
            metrics |= self.grader.take_counts()
            self.spent.update({name: metrics[name] for name in _SPENT})
            metrics |= {f"{name}_so_far": float(self.spent[name]) for name in _SPENT}
        self.run.check_owner()
        self.trackers.steps.write(version, metrics)
        if self.kept is not None:
            self.kept.commit(version)
        self.on_step(version, metrics)
        if self.lost:
            raise self.lost
        if self.stop.requested or version == config.steps or self.due.at(version):
            with self.timeline.span("learner", "checkpoint", version=version), self.due.taken():
                if self.kept is not None:
                    await self.kept.written()  # a run that resumes from here never takes these steps again
                await self.learner.checkpoint()
        if self.evaluation:
            await self.evaluation.start(version)
        return not self.stop.requested

    def _periodic(self, held_out: HeldOut) -> PeriodicEvaluation:
        config, engine = self.run.config, self.engine
        assert engine is not None, "held-out problems were prepared for a method without an engine"
        longest = max(len(question.prompt_ids) for question in held_out.questions)

        async def score() -> Scores:
            with self.meter.because(Idle.EVALUATING), self.timeline.span("evaluation", "held-out problems"):
                name, unreadable = held_out.problem_set.grader, held_out.unreadable
                async with open_grader(name, config.grading, unreadable=unreadable) as grader:
                    return await complete_and_grade(
                        held_out.questions,
                        Metered(engine, self.meter),
                        grader,
                        grader.answer,
                        max_new_tokens=config.rollout.max_sequence_tokens - longest,
                        samples=0,
                        seed=config.seed,
                    )

        return PeriodicEvaluation(
            score,
            self.learner.save_adapter,
            self.trackers.evaluations,
            self.run.best,
            config.evaluation.every,
            config.steps,
        )
