"""What the registry's names stand for: the batch maker and the loss terms of a method, ready for one run."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np
from treeopo_storage import TreeStore

from treeopo.advantage import AdvantageSettings
from treeopo.config import TrainConfig
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.errors import ProblemError, RunError
from treeopo.methods import Batches, Term, find_method, plan_groups
from treeopo.ports import Generate, Grade, ScoreTokens
from treeopo.problems.prompting import STOP_KEY
from treeopo.problems.settings import GRADER_KEY, Family
from treeopo.problems.solutions import worked_solutions
from treeopo.records import Completion, DrawnGroup, Group, Problem, TrainBatch
from treeopo.rollout.batches import assemble
from treeopo.rollout.distillation import distil, with_teacher
from treeopo.rollout.meter import EngineMeter
from treeopo.rollout.replay import Replay
from treeopo.rollout.rollouts import Rollouts
from treeopo.rollout.sampler import GroupSampler
from treeopo.rollout.solutions import Solution, Solutions, SolvedTraces
from treeopo.rollout.traces import Traces
from treeopo.rollout.valued_steps import ValuedSteps

if TYPE_CHECKING:
    from treeopo.learner.objectives import Objective, Separate, Terms
    from treeopo.learner.policy import LoraPolicy
    from treeopo.learner.thread import LearnerThread

MakeBatch = Callable[[int], Awaitable[TrainBatch]]
"""Batch b of a run: a pure function of (seed, b, store) and of the policies that are published while it is made."""


@dataclass(frozen=True, slots=True)
class Running:
    """What a batch maker may call on once the run has started; None where the method needs none of it."""

    learner: "LearnerThread"
    engine: Generate | None
    meter: EngineMeter
    grade: Grade
    teacher: ScoreTokens | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """A method's data, checked and ready. material: what there is to learn from, in words. bind: the batch maker."""

    material: str
    bind: Callable[[Running], MakeBatch]


def recipe(config: TrainConfig, store: TreeStore | None, tokenizer: ModelTokenizer) -> Recipe:
    """How the batches of `config.method` are made; `store` is None where `solutions.problems` is learned from.

    Raises:
        InputError: the store or the problem set lacks what the method needs.
    """
    if store is None:
        return _own_solutions(config, tokenizer)
    match find_method(config.method).batches:
        case Batches.ROLLOUTS:
            return _rollouts(config, store)
        case Batches.REPLAY:
            return _replay(config, store)
        case Batches.SOLUTIONS:
            return _solved_traces(config, store, tokenizer)
        case Batches.VALUED_STEPS:
            return _valued_steps(config, store)


def objectives(config: TrainConfig, teacher: str | None, policy: "LoraPolicy") -> "Terms":
    """The terms of the method's loss, for this policy; `teacher` is a model's name where the method needs one."""
    return [term for name in find_method(config.method).terms for term in _terms(name, config, teacher, policy)]


def _terms(term: Term, config: TrainConfig, teacher: str | None, policy: "LoraPolicy") -> "Terms":
    match term:
        case Term.POLICY_GRADIENT:
            from treeopo.learner.objectives.policy_gradient import PolicyGradient

            return [PolicyGradient(config.learner)]
        case Term.CROSS_ENTROPY:
            from treeopo.learner.objectives.cross_entropy import CrossEntropy

            return [CrossEntropy()]
        case Term.DIRECT_VALUE:
            from treeopo.learner.objectives.direct_value import DirectValue

            return [DirectValue(config.dvo.beta)]
        case Term.KL:
            return [_kl(config, teacher, policy)]
        case Term.ACTOR_CRITIC:
            return _actor_critic(config, policy)


def _kl(config: TrainConfig, teacher: str | None, policy: "LoraPolicy") -> "Objective | Separate":
    from treeopo.learner.objectives import Separate
    from treeopo.learner.objectives.kl import KlToTeacher
    from treeopo.learner.teacher import Teacher

    assert teacher is not None, "a method with a KL term needs a teacher"
    remote_code = config.engine.trust_remote_code
    in_learner = Teacher(teacher, config.learner, remote_code) if config.kl.estimate == "full" else None
    term = KlToTeacher(config.kl, config.learner, config.rollout.temperature, in_learner)
    if config.kl.optimizer == "summed":
        return term
    return Separate(
        "kl", term, replace(config.learner.optimizer, learning_rate=config.kl.learning_rate), policy.trainable
    )


def _actor_critic(config: TrainConfig, policy: "LoraPolicy") -> "Terms":
    from treeopo.learner.critic import make_critic
    from treeopo.learner.objectives import Separate
    from treeopo.learner.objectives.actor_critic import Actor, ValueRegression
    from treeopo.learner.objectives.policy_gradient import PolicyGradient

    critic = make_critic(policy, config.critic)
    optimizer = replace(config.learner.optimizer, learning_rate=config.critic.learning_rate)
    regression = ValueRegression(critic, config.critic)
    return [
        Actor(PolicyGradient(config.learner), critic, config.critic),
        Separate("critic", regression, optimizer, list(critic.parameters()), critic),
    ]


def _rollouts(config: TrainConfig, store: TreeStore) -> Recipe:
    start, advantage = plan_groups(find_method(config.method), config.advantage)
    sampler = GroupSampler(store, config.rollout, config.seed, start)
    kept = store.meta.search.get(STOP_KEY)
    stop = tuple(map(str, kept)) if isinstance(kept, list) else ()

    def bind(running: Running) -> MakeBatch:
        assert running.engine is not None, "a method of rollouts needs an engine"
        grade, assembled = _grader(store, running.grade), _assembly(config, advantage, running.teacher)
        return Rollouts(
            sampler, running.engine, grade, assembled, config.rollout, config.seed, running.meter, stop
        ).batch

    return Recipe(f"{sampler.usable_count:,} prefixes to start from, {sampler.too_long:,} too long", bind)


def _assembly(
    config: TrainConfig, advantage: AdvantageSettings, teacher: ScoreTokens | None
) -> Callable[[int, Sequence[Group]], Awaitable[TrainBatch]]:
    """How graded groups become a batch: with the task's advantages, the teacher's scores, or both."""
    credit = find_method(config.method).credit
    if not config.needs_scores:
        return partial(assemble, settings=advantage)
    assert teacher is not None, "a batch with the teacher's scores needs a teacher"
    if credit is not None:
        return partial(distil, teacher=teacher, credit=credit)

    async def staged_and_scored(number: int, groups: Sequence[Group]) -> TrainBatch:
        return await with_teacher(await assemble(number, groups, settings=advantage), teacher)

    return staged_and_scored


def _replay(config: TrainConfig, store: TreeStore) -> Recipe:
    start, advantage = plan_groups(find_method(config.method), config.advantage)
    replay = Replay(store, partial(assemble, settings=advantage), config.rollout, config.seed, start)
    left_out = replay.found.unknown + replay.found.too_long
    material = (
        f"{replay.sampler.usable_count:,} prefixes with {replay.found.count:,} continuations of the teacher's, "
        f"{left_out:,} left out ({replay.found.unknown:,} without log-probabilities)"
    )
    return Recipe(material, lambda running: replay.batch)


def _solved_traces(config: TrainConfig, store: TreeStore, tokenizer: ModelTokenizer) -> Recipe:
    traces = Traces(store, config.rollout, solved_only=True)
    solutions = Solutions(SolvedTraces(traces, tokenizer.eos_token_id), config.rollout, config.seed)
    return Recipe(f"{len(traces):,} solved traces, {traces.too_long:,} too long", lambda running: solutions.batch)


def _own_solutions(config: TrainConfig, tokenizer: ModelTokenizer) -> Recipe:
    pairs = worked_solutions(config.solutions, tokenizer)
    rows = [
        Solution(np.array(prompt, np.int32), np.array(solution, np.int32))
        for prompt, solution in pairs
        if config.rollout.fits(len(prompt), len(prompt) + len(solution))
    ]
    if not rows:
        name = config.solutions.problems
        raise ProblemError(f"{name}: no solution fits; raise rollout.max_prompt_tokens and rollout.max_sequence_tokens")
    batch = Solutions(rows, config.rollout, config.seed).batch
    return Recipe(f"{len(rows):,} worked solutions, {len(pairs) - len(rows):,} too long", lambda running: batch)


def _valued_steps(config: TrainConfig, store: TreeStore) -> Recipe:
    traces = Traces(store, config.rollout, solved_only=False)

    def bind(running: Running) -> MakeBatch:
        return ValuedSteps(traces, running.learner.reference_logprobs, config.rollout, config.seed).batch

    return Recipe(f"{len(traces):,} traces, {traces.too_long:,} too long", bind)


def family(config: TrainConfig, store: TreeStore | None) -> Family:
    """How answers to the store's problems are graded: as set, as the store says, or (imported trees) as numbers.

    Raises:
        RunError: the store names a grader that is not known here.
    """
    stored = store.meta.search.get(GRADER_KEY) if store is not None else None
    name = config.grading.family or stored or Family.NUMBER
    if name not in list(Family):
        raise RunError(f"the store names an unknown grader {name!r}; set grading.family to one of {', '.join(Family)}")
    return Family(str(name))


def _grader(store: TreeStore, grade: Grade) -> Callable[[DrawnGroup, Completion], Awaitable[float]]:
    """Grades a completion against the gold answer that the store keeps for its problem."""

    @cache
    def problem(index: int) -> Problem:
        tree = store.problem(index)
        return Problem(tree.id, tree.question, tree.answer)

    return lambda drawn, completion: grade(problem(drawn.problem), completion.text)
