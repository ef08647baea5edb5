"""What the registry's names stand for: the batch maker and the loss terms of a method, ready for one run."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

from treeopo_storage import TreeStore

from treeopo.config import TrainConfig
from treeopo.errors import RunError
from treeopo.methods import Batches, Term, find_method, plan_groups
from treeopo.ports import Generate, Grade
from treeopo.problems.settings import GRADER_KEY, Family
from treeopo.records import Completion, DrawnGroup, Problem, TrainBatch
from treeopo.rollout.batches import assemble
from treeopo.rollout.meter import EngineMeter
from treeopo.rollout.rollouts import Rollouts
from treeopo.rollout.sampler import GroupSampler

if TYPE_CHECKING:
    from treeopo.learner.objectives import Objective
    from treeopo.learner.policy import LoraPolicy
    from treeopo.learner.thread import LearnerThread

MakeBatch = Callable[[int], Awaitable[TrainBatch]]
"""Batch b of a run: a pure function of (seed, b, store) and of the policies that are published while it is made."""


@dataclass(frozen=True, slots=True)
class Running:
    """What a batch maker may call on once the run has started; `engine` is None where the method needs none."""

    learner: "LearnerThread"
    engine: Generate | None
    meter: EngineMeter
    grade: Grade


@dataclass(frozen=True, slots=True)
class Recipe:
    """A method's data, checked and ready. material: what there is to learn from, in words. bind: the batch maker."""

    material: str
    bind: Callable[[Running], MakeBatch]


def recipe(config: TrainConfig, store: TreeStore) -> Recipe:
    """How the batches of `config.method` are made.

    Raises:
        InputError: the store lacks what the method needs.
    """
    match find_method(config.method).batches:
        case Batches.ROLLOUTS:
            return _rollouts(config, store)


def objectives(config: TrainConfig, policy: "LoraPolicy") -> list["Objective"]:
    """The terms of the method's loss, for this policy."""
    return [_term(term, config, policy) for term in find_method(config.method).terms]


def _term(term: Term, config: TrainConfig, policy: "LoraPolicy") -> "Objective":
    match term:
        case Term.POLICY_GRADIENT:
            from treeopo.learner.objectives.policy_gradient import PolicyGradient

            return PolicyGradient(config.learner)


def _rollouts(config: TrainConfig, store: TreeStore) -> Recipe:
    start, advantage = plan_groups(find_method(config.method), config.advantage)
    sampler = GroupSampler(store, config.rollout, config.seed, start)

    def bind(running: Running) -> MakeBatch:
        assert running.engine is not None, "a method of rollouts needs an engine"
        grade, assembled = _grader(store, running.grade), partial(assemble, settings=advantage)
        return Rollouts(sampler, running.engine, grade, assembled, config.rollout, config.seed, running.meter).batch

    return Recipe(f"{sampler.usable_count:,} prefixes to start from, {sampler.too_long:,} too long", bind)


def family(config: TrainConfig, store: TreeStore) -> Family:
    """How answers to the store's problems are graded: as set, as the store says, or (imported trees) as numbers.

    Raises:
        RunError: the store names a grader that is not known here.
    """
    name = config.grading.family or store.meta.search.get(GRADER_KEY, Family.NUMBER)
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
