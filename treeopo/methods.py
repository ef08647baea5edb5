"""The methods that `treeopo train --method` knows: what each is made of and what it needs.

A method is how its batch is made and which terms its loss adds up. Nothing else in treeopo looks at its name:
`treeopo.recipes` turns the parts named here into objects. Needs neither torch nor vLLM.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from treeopo.advantage.settings import AdvantageSettings, Scope
from treeopo.advantage.settings import Method as Advantage
from treeopo.errors import ConfigError
from treeopo.rollout.sampler import Start
from treeopo.rollout.settings import Credit


class Batches(StrEnum):
    """How a batch is made."""

    ROLLOUTS = "rollouts"  # groups of prefixes, completed by the student's engine and graded
    REPLAY = "replay"  # groups of prefixes, completed by what the teacher said there
    SOLUTIONS = "solutions"  # solved traces of a store, or a problem set's own solutions
    VALUED_STEPS = "valued-steps"  # traces of a store with the search's value of every step


class Term(StrEnum):
    """A term of the loss; `treeopo.learner.objectives` has a file for each."""

    POLICY_GRADIENT = "policy-gradient"
    CROSS_ENTROPY = "cross-entropy"
    DIRECT_VALUE = "direct-value"
    KL = "kl"
    ACTOR_CRITIC = "actor-critic"


class Need(StrEnum):
    """What a method cannot start without, beside a student and its data."""

    ENGINE = "engine"  # vLLM, to sample from the student
    TEACHER = "teacher"  # a model with the student's tokenizer, loaded beside it
    CRITIC = "critic"  # trained along
    STATISTICS = "search statistics"  # the store's values, or its teacher's log-probabilities


@dataclass(frozen=True, slots=True)
class Method:
    """One row of `treeopo methods`. `start`: where its groups begin (None: it has no groups, so no advantages).
    `credit`: what the teacher's word on a completion becomes, in place of advantages of the task's reward.
    `teacher_by`: the method that tunes the teacher in a first stage of the run.
    """

    name: str
    summary: str
    source: str
    batches: Batches
    terms: tuple[Term, ...]
    needs: frozenset[Need]
    start: Start | None = None
    credit: Credit | None = None
    teacher_by: str | None = None


_ROWS = (
    Method(
        name="tree-opo",
        summary="prefixes of the tree completed by the student; staged advantages of the task reward",
        source="Tree-OPO §3, Tables 1 and 2",
        batches=Batches.ROLLOUTS,
        terms=(Term.POLICY_GRADIENT,),
        needs=frozenset({Need.ENGINE}),
        start=Start.PREFIX,
    ),
    Method(
        name="grpo",
        summary="N completions of each question; rewards z-scored within the group",
        source="Tree-OPO Table 1; Shao et al. 2024",
        batches=Batches.ROLLOUTS,
        terms=(Term.POLICY_GRADIENT,),
        needs=frozenset({Need.ENGINE}),
        start=Start.ROOT,
    ),
    Method(
        name="tree-opo-kl",
        summary="tree-opo plus beta KL to a teacher, by an optimiser of its own or in one sum",
        source="Tree-OPO §4.3, Table 2, App. B",
        batches=Batches.ROLLOUTS,
        terms=(Term.POLICY_GRADIENT, Term.KL),
        needs=frozenset({Need.ENGINE, Need.TEACHER}),
        start=Start.PREFIX,
    ),
    Method(
        name="reinforce-kl",
        summary="the student's completions of each question, rewarded by teacher over student probability alone",
        source="Tree-OPO Table 2; GKD, Agarwal et al. 2024",
        batches=Batches.ROLLOUTS,
        terms=(Term.POLICY_GRADIENT,),
        needs=frozenset({Need.ENGINE, Need.TEACHER}),
        start=Start.ROOT,
        credit=Credit.TO_GO,
    ),
    Method(
        name="mcts-reinforce",
        summary="sft of the teacher on the store's solved traces, then reinforce-kl toward it",
        source="Tree-OPO Table 2, App. B",
        batches=Batches.ROLLOUTS,
        terms=(Term.POLICY_GRADIENT,),
        needs=frozenset({Need.ENGINE, Need.TEACHER}),
        start=Start.ROOT,
        credit=Credit.TO_GO,
        teacher_by="sft",
    ),
    Method(
        name="reinforce-kl-baseline",
        summary="reinforce-kl minus what the group's other completions had still to come",
        source="Tree-OPO Table 2; MiniLLM, Gu et al. 2024; RLOO, Ahmadian et al. 2024",
        batches=Batches.ROLLOUTS,
        terms=(Term.POLICY_GRADIENT,),
        needs=frozenset({Need.ENGINE, Need.TEACHER}),
        start=Start.ROOT,
        credit=Credit.LEAVE_ONE_OUT,
    ),
    Method(
        name="actor-critic",
        summary="the rewards of reinforce-kl, made into advantages by a critic and GAE",
        source="Tree-OPO Table 2, App. B; Schulman et al. 2016",
        batches=Batches.ROLLOUTS,
        terms=(Term.ACTOR_CRITIC,),
        needs=frozenset({Need.ENGINE, Need.TEACHER, Need.CRITIC}),
        start=Start.ROOT,
        credit=Credit.REWARD,
    ),
    Method(
        name="tree-opo-replay",
        summary="tree-opo on the teacher's own completions, weighted by student over teacher probability",
        source="Tree-OPO §3.1, teacher importance weights",
        batches=Batches.REPLAY,
        terms=(Term.POLICY_GRADIENT,),
        needs=frozenset({Need.STATISTICS}),
        start=Start.PREFIX,
    ),
    Method(
        name="sft",
        summary="cross-entropy on a store's solved traces, or on a problem set's own solutions",
        source="first stage of mcts-reinforce, Tree-OPO Table 2",
        batches=Batches.SOLUTIONS,
        terms=(Term.CROSS_ENTROPY,),
        needs=frozenset(),
    ),
    Method(
        name="dvo",
        summary="log-ratio to the base model over a step regresses on the step's gain in search value",
        source="value-guided alignment (second paper)",
        batches=Batches.VALUED_STEPS,
        terms=(Term.DIRECT_VALUE,),
        needs=frozenset({Need.STATISTICS}),
    ),
)

METHODS: Final = {method.name: method for method in _ROWS}


def find_method(name: str) -> Method:
    """The method called `name`.

    Raises:
        ConfigError: there is none.
    """
    if name not in METHODS:
        raise ConfigError(f"no method {name!r}; choose one of {', '.join(METHODS)}")
    return METHODS[name]


def plan_groups(method: Method, advantage: AdvantageSettings) -> tuple[Start, AdvantageSettings]:
    """Where the method's groups start, and how their rewards become advantages.

    Raises:
        ConfigError: these advantages do not go with this method, or the trainer cannot feed them.
    """
    if method.start is None:
        raise ConfigError(f"method {method.name} has no groups, so no advantages; leave the advantage settings out")
    if method.credit is not None and advantage != AdvantageSettings():
        raise ConfigError(f"method {method.name} learns from the teacher alone; leave the advantage settings out")
    if method.start is Start.ROOT:
        return Start.ROOT, AdvantageSettings(method=Advantage.GRPO, standardize=advantage.standardize)
    if advantage.method is Advantage.GRPO:
        raise ConfigError("advantage.method grpo belongs to --method grpo, whose groups start at the root")
    if advantage.baseline is Advantage.MC or advantage.scope is Scope.HISTORY:
        raise ConfigError(
            f"advantage.method {advantage.method} with scope {advantage.scope}: the trainer takes no extra rollouts "
            "and keeps no history yet; use any other method, with scope group"
        )
    return Start.TRACE if advantage.method is Advantage.TRACE else method.start, advantage
