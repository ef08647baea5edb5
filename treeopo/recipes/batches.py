"""What a method learns from: the training data of one run, checked before anything starts, and its batches."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import assert_never

import numpy as np
from treeopo_storage import TreeStore

from treeopo.advantage import AdvantageMethod, AdvantageSettings, Scope
from treeopo.config import TrainConfig
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.errors import ConfigError, ProblemError, RunError
from treeopo.methods import Batches, find_method
from treeopo.ports import Generate, Grade, Notify, ScoreTokens
from treeopo.problems.graders import load_grader
from treeopo.problems.prompting import STOP_KEY
from treeopo.problems.settings import GRADER_KEY
from treeopo.problems.solutions import worked_solutions
from treeopo.records import Completion, FloatArray, Problem, PromptGroup, RolloutGroup, TrainBatch, TrainSequence
from treeopo.rollout.batches import assemble
from treeopo.rollout.distillation import distil, with_teacher
from treeopo.rollout.finishing import Finish
from treeopo.rollout.memory import OutcomeMemory
from treeopo.rollout.meter import EngineMeter
from treeopo.rollout.replay import ReplayBatches
from treeopo.rollout.rollouts import BatchParts, Keep, RolloutBatches
from treeopo.rollout.sampling.groups import GroupSampler
from treeopo.rollout.solutions import Solution, SolutionBatches, SolvedTraces
from treeopo.rollout.traces import Traces
from treeopo.rollout.valued_steps import ValuedStepBatches
from treeopo.timeline import Timeline

MakeBatch = Callable[[int], Awaitable[TrainBatch]]
"""Batch b of a run: a pure function of (seed, b, store) and of the policies that are published while it is made."""


@dataclass(frozen=True, slots=True)
class Services:
    """What batches may call on while a run is under way. generate and teacher are None where the method needs none;
    reference_logprobs gives each completion's log-probabilities (C,) under the base model; keep is given every batch of
    rollouts, if somebody wants them.
    """

    generate: Generate | None
    meter: EngineMeter
    timeline: Timeline
    grade: Grade
    teacher: ScoreTokens | None
    reference_logprobs: Callable[[Sequence[TrainSequence]], Awaitable[list[FloatArray]]]
    keep: Keep | None = None


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Validated training data. summary: how much there is to learn from, in words. batches: opens their source. memory:
    what it remembers of the run, which belongs to a checkpoint; None where the student is asked for nothing.
    """

    summary: str
    batches: Callable[[Services], MakeBatch]
    memory: OutcomeMemory | None = None


def training_data(
    config: TrainConfig, store: TreeStore | None, tokenizer: ModelTokenizer, notify: Notify = lambda notice: None
) -> TrainingData:
    """What `config.method` learns from; `store` is None where `solutions.problems` is learned from.

    Raises:
        InputError: the store or the problem set lacks what the method needs.
    """
    if store is None:
        return _own_solutions(config, tokenizer, notify)
    batches = find_method(config.method).batches
    match batches:
        case Batches.ROLLOUTS:
            return _rollouts(config, store)
        case Batches.REPLAY:
            return _replay(config, store)
        case Batches.SOLUTIONS:
            return _solved_traces(config, store, tokenizer)
        case Batches.VALUED_STEPS:
            return _valued_steps(config, store)
        case _:
            assert_never(batches)


def grader_name(config: TrainConfig, store: TreeStore | None) -> str:
    """How answers to the store's problems are graded: as set, as the store says, or (imported trees) as numbers.

    Raises:
        RunError: the store names a grader that cannot be had here.
    """
    stored = store.meta.search.get(GRADER_KEY) if store is not None else None
    name = str(config.grading.grader or stored or "number")
    try:
        load_grader(name)
    except ConfigError as error:
        whose = "" if config.grading.grader else "the store's "
        raise RunError(f"{whose}{error}; set grading.grader (--grader) to another") from None
    return name


def _rollouts(config: TrainConfig, store: TreeStore) -> TrainingData:
    start, advantage = config.group_plan
    remembers = advantage.scope is Scope.HISTORY
    sampler = GroupSampler(store, config.rollout, config.seed, start, remembers=remembers)
    memory = OutcomeMemory(store.structure(), config.rollout, config.steps)
    kept = store.meta.search.get(STOP_KEY)
    stop = tuple(map(str, kept)) if isinstance(kept, list) else ()

    def batches(services: Services) -> MakeBatch:
        assert services.generate is not None, "a method of rollouts needs an engine"
        grade = _graded(store, services.grade)
        parts = BatchParts(
            sampler=sampler,
            memory=memory,
            finish=Finish(services.generate, grade, config.rollout, config.seed, services.meter, stop),
            assemble=_assembly(config, advantage, services.teacher),
            timeline=services.timeline,
            keep=services.keep,
            baseline_rollouts=advantage.baseline_rollouts if advantage.baseline is AdvantageMethod.MC else 0,
        )
        return RolloutBatches(parts, config.rollout).batch

    summary = f"{sampler.usable_count:,} prefixes to start from, {sampler.too_long:,} too long"
    return TrainingData(summary, batches, memory)


def _graded(store: TreeStore, grade: Grade) -> Callable[[PromptGroup, Completion], Awaitable[float]]:
    """Grades a completion against the gold answer that the store keeps for its problem."""

    @cache
    def problem(index: int) -> Problem:
        tree = store.problem(index)
        return Problem(tree.id, tree.question, tree.answer)

    return lambda drawn, completion: grade(problem(drawn.problem), completion.text)


def _assembly(
    config: TrainConfig, advantage: AdvantageSettings, teacher: ScoreTokens | None
) -> Callable[[int, Sequence[RolloutGroup]], Awaitable[TrainBatch]]:
    """How graded groups become a batch: with the task's advantages, the teacher's scores, or both."""
    teacher_reward = find_method(config.method).teacher_reward
    if not config.needs_scores:
        return partial(assemble, settings=advantage)
    assert teacher is not None, "a batch with the teacher's scores needs a teacher"
    if teacher_reward is not None:
        return partial(distil, teacher=teacher, teacher_reward=teacher_reward)

    async def staged_and_scored(number: int, groups: Sequence[RolloutGroup]) -> TrainBatch:
        return await with_teacher(await assemble(number, groups, settings=advantage), teacher)

    return staged_and_scored


def _replay(config: TrainConfig, store: TreeStore) -> TrainingData:
    start, advantage = config.group_plan
    replay = ReplayBatches(
        store, partial(assemble, settings=advantage), config.rollout, config.seed, start, config.steps
    )
    left_out = replay.found.unknown + replay.found.too_long
    summary = (
        f"{replay.sampler.usable_count:,} prefixes with {replay.found.count:,} continuations of the teacher's, "
        f"{left_out:,} left out ({replay.found.unknown:,} without log-probabilities)"
    )
    return TrainingData(summary, lambda services: replay.batch)


def _solved_traces(config: TrainConfig, store: TreeStore, tokenizer: ModelTokenizer) -> TrainingData:
    traces = Traces(store, config.rollout, solved_only=True)
    prompt = store.meta.search.get("prompt")
    ends = tokenizer.answer_ends(chat=isinstance(prompt, dict) and prompt.get("style") == "chat")
    solutions = SolutionBatches(SolvedTraces(traces, ends), config.rollout, config.seed)
    return TrainingData(
        f"{len(traces):,} solved traces, {traces.too_long:,} too long", lambda services: solutions.batch
    )


def _own_solutions(config: TrainConfig, tokenizer: ModelTokenizer, notify: Notify) -> TrainingData:
    pairs = worked_solutions(config.solutions, tokenizer, notify)
    rows = [
        Solution(np.array(prompt, np.int32), np.array(solution, np.int32))
        for prompt, solution in pairs
        if config.rollout.fits(len(prompt), len(prompt) + len(solution))
    ]
    if not rows:
        name = config.solutions.problems
        raise ProblemError(f"{name}: no solution fits; raise rollout.max_prompt_tokens and rollout.max_sequence_tokens")
    solutions = SolutionBatches(rows, config.rollout, config.seed)
    return TrainingData(
        f"{len(rows):,} worked solutions, {len(pairs) - len(rows):,} too long", lambda services: solutions.batch
    )


def _valued_steps(config: TrainConfig, store: TreeStore) -> TrainingData:
    traces = Traces(store, config.rollout, solved_only=False)

    def batches(services: Services) -> MakeBatch:
        return ValuedStepBatches(traces, services.reference_logprobs, config.rollout, config.seed).batch

    return TrainingData(f"{len(traces):,} traces, {traces.too_long:,} too long", batches)
