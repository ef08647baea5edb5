"""The methods that `treeopo train --method` knows: what each is made of and what it needs.

A method is how its batch is made and which losses it adds up. Nothing else in treeopo looks at its name:
`treeopo.recipes` turns the parts named here into objects. Needs neither torch nor vLLM.
"""

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Final, NamedTuple

from treeopo.advantage.settings import AdvantageMethod, AdvantageSettings, Scope
from treeopo.errors import ConfigError
from treeopo.plugins import check_name
from treeopo.rollout.sampling.names import ASK_THE_MEMORY, SAMPLERS, StartStates
from treeopo.rollout.settings import CurriculumSettings, NoSignal, RolloutSettings, TeacherReward


class Batches(StrEnum):
    """How a batch is made."""

    ROLLOUTS = "rollouts"  # groups of prefixes, completed by the student's engine and graded
    REPLAY = "replay"  # groups of prefixes, completed by what the teacher said there
    SOLUTIONS = "solutions"  # solved traces of a store, or a problem set's own solutions
    VALUED_STEPS = "valued-steps"  # traces of a store with the search's value of every step


class LossName(StrEnum):
    """A part of what is descended; `treeopo.learner.losses` has a file for each."""

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
    """One row of `treeopo methods`.

    start: the start states of its groups (None: it has no groups, so no advantages). teacher_reward: what the teacher's
    log-probabilities become, in place of advantages of the task's reward. teacher_by: the method that tunes the teacher
    in a first stage of the run. sections: the settings that are for some methods only, and for this one.
    """

    name: str
    summary: str
    source: str
    batches: Batches
    losses: tuple[LossName, ...]
    needs: frozenset[Need]
    start: StartStates | None = None
    teacher_reward: TeacherReward | None = None
    teacher_by: str | None = None
    sections: frozenset[str] = frozenset()


class GroupPlan(NamedTuple):
    """start: the sampler of start states, by name. advantage: how rewards become advantages."""

    start: str
    advantage: AdvantageSettings


_ROWS = (
    Method(
        name="tree-opo",
        summary="prefixes of the tree completed by the student; staged advantages of the task reward",
        source="Tree-OPO §3, Tables 1 and 2",
        batches=Batches.ROLLOUTS,
        losses=(LossName.POLICY_GRADIENT,),
        needs=frozenset({Need.ENGINE}),
        start=StartStates.UNIFORM,
        sections=frozenset({"advantage"}),
    ),
    Method(
        name="grpo",
        summary="N completions of each question; rewards z-scored within the group",
        source="Tree-OPO Table 1; Shao et al. 2024",
        batches=Batches.ROLLOUTS,
        losses=(LossName.POLICY_GRADIENT,),
        needs=frozenset({Need.ENGINE}),
        start=StartStates.ROOT,
        sections=frozenset({"advantage"}),
    ),
    Method(
        name="tree-opo-kl",
        summary="tree-opo plus beta KL to a teacher, by an optimiser of its own or in one sum",
        source="Tree-OPO §4.3, Table 2, App. B",
        batches=Batches.ROLLOUTS,
        losses=(LossName.POLICY_GRADIENT, LossName.KL),
        needs=frozenset({Need.ENGINE, Need.TEACHER}),
        start=StartStates.UNIFORM,
        sections=frozenset({"advantage", "teacher", "teacher_urls", "kl"}),
    ),
    Method(
        name="reinforce-kl",
        summary="the student's completions of each question, rewarded by teacher over student probability alone",
        source="Tree-OPO Table 2; GKD, Agarwal et al. 2024",
        batches=Batches.ROLLOUTS,
        losses=(LossName.POLICY_GRADIENT,),
        needs=frozenset({Need.ENGINE, Need.TEACHER}),
        start=StartStates.ROOT,
        teacher_reward=TeacherReward.TO_GO,
        sections=frozenset({"teacher", "teacher_urls"}),
    ),
    Method(
        name="mcts-reinforce",
        summary="sft of the teacher on the store's solved traces, then reinforce-kl toward it",
        source="Tree-OPO Table 2, App. B",
        batches=Batches.ROLLOUTS,
        losses=(LossName.POLICY_GRADIENT,),
        needs=frozenset({Need.ENGINE, Need.TEACHER}),
        start=StartStates.ROOT,
        teacher_reward=TeacherReward.TO_GO,
        teacher_by="sft",
        sections=frozenset({"teacher", "teacher_steps"}),
    ),
    Method(
        name="reinforce-kl-baseline",
        summary="reinforce-kl minus what the group's other completions had still to come",
        source="Tree-OPO Table 2; MiniLLM, Gu et al. 2024; RLOO, Ahmadian et al. 2024",
        batches=Batches.ROLLOUTS,
        losses=(LossName.POLICY_GRADIENT,),
        needs=frozenset({Need.ENGINE, Need.TEACHER}),
        start=StartStates.ROOT,
        teacher_reward=TeacherReward.LEAVE_ONE_OUT,
        sections=frozenset({"teacher", "teacher_urls"}),
    ),
    Method(
        name="actor-critic",
        summary="the rewards of reinforce-kl, made into advantages by a critic and GAE",
        source="Tree-OPO Table 2, App. B; Schulman et al. 2016",
        batches=Batches.ROLLOUTS,
        losses=(LossName.ACTOR_CRITIC,),
        needs=frozenset({Need.ENGINE, Need.TEACHER, Need.CRITIC}),
        start=StartStates.ROOT,
        teacher_reward=TeacherReward.PER_TOKEN,
        sections=frozenset({"teacher", "teacher_urls", "critic"}),
    ),
    Method(
        name="tree-opo-replay",
        summary="tree-opo on the teacher's own completions, weighted by student over teacher probability",
        source="Tree-OPO §3.1, teacher importance weights",
        batches=Batches.REPLAY,
        losses=(LossName.POLICY_GRADIENT,),
        needs=frozenset({Need.STATISTICS}),
        start=StartStates.UNIFORM,
        sections=frozenset({"advantage"}),
    ),
    Method(
        name="sft",
        summary="cross-entropy on a store's solved traces, or on a problem set's own solutions",
        source="first stage of mcts-reinforce, Tree-OPO Table 2",
        batches=Batches.SOLUTIONS,
        losses=(LossName.CROSS_ENTROPY,),
        needs=frozenset(),
        sections=frozenset({"solutions"}),
    ),
    Method(
        name="dvo",
        summary="log-ratio to the base model over a step regresses on the step's gain in search value",
        source="DVO, Zhang et al. 2025, arXiv 2502.13723; docs/methods.md",
        batches=Batches.VALUED_STEPS,
        losses=(LossName.DIRECT_VALUE,),
        needs=frozenset({Need.STATISTICS}),
        sections=frozenset({"dvo"}),
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


def owners(section: str) -> str:
    """The methods that have a use for a section of the settings, in words."""
    names = [method.name for method in METHODS.values() if section in method.sections]
    return f"method {names[0]}" if len(names) == 1 else f"methods {', '.join(names)}"


def plan_groups(method: Method, advantage: AdvantageSettings, rollout: RolloutSettings) -> GroupPlan:
    """Where the method's groups start, and how rewards become advantages.

    Raises:
        ConfigError: these advantages or start states do not go with this method, or would be ignored.
    """
    assert method.start is not None, f"method {method.name} has no groups"
    if rollout.no_signal is NoSignal.REDRAW and (method.batches is not Batches.ROLLOUTS or method.teacher_reward):
        raise ConfigError(f"rollout.no_signal redraw: to method {method.name} any group is a signal; leave it out")

    if method.start is StartStates.ROOT:
        return GroupPlan(method.start, _advantage_at_the_root(method, advantage, rollout))
    start = _sampler(method.start, advantage, rollout.sampling)
    _check_feeding(method, start, advantage)
    _check_curriculum(start, rollout.curriculum)
    return GroupPlan(start, advantage)


def _advantage_at_the_root(method: Method, advantage: AdvantageSettings, rollout: RolloutSettings) -> AdvantageSettings:
    for name, default in (("sampling", None), ("completions_per_prefix", 1), ("curriculum", CurriculumSettings())):
        if getattr(rollout, name) != default:
            raise ConfigError(f"rollout.{name}: method {method.name} starts at the root; leave it out")
    grpo = AdvantageSettings(method=AdvantageMethod.GRPO, standardize=advantage.standardize)
    if advantage not in (AdvantageSettings(), grpo):
        raise ConfigError(
            f"method {method.name} z-scores the rewards of a group; of the advantage settings it knows "
            "advantage.method grpo with advantage.standardize"
        )
    return grpo


def _sampler(start: StartStates, advantage: AdvantageSettings, sampling: str | None) -> str:
    """The sampler of a method whose groups start at prefixes."""
    if sampling is not None:
        check_name(sampling, SAMPLERS, "rollout.sampling")
    if advantage.method is AdvantageMethod.GRPO:
        raise ConfigError("advantage.method grpo belongs to --method grpo, whose groups start at the root")
    if advantage.method is not AdvantageMethod.TRACE:
        return sampling or start
    if sampling not in (None, StartStates.TRACE):
        raise ConfigError(f"rollout.sampling {sampling}: advantage.method trace draws from one trace; leave it out")
    return StartStates.TRACE


def _check_feeding(method: Method, start: str, advantage: AdvantageSettings) -> None:
    """What needs completions of the student's own is for methods that have some."""
    if method.batches is Batches.ROLLOUTS:
        return
    asking = {
        f"rollout.sampling {start}": start in ASK_THE_MEMORY,
        f"advantage.method {advantage.method}": advantage.baseline is AdvantageMethod.MC,
        f"advantage.scope {advantage.scope}": advantage.scope is Scope.HISTORY,
    }
    for setting, asks in asking.items():
        if asks:
            raise ConfigError(f"{setting} needs completions of the student's, and method {method.name} samples none")


def _check_curriculum(start: str, curriculum: CurriculumSettings) -> None:
    """A setting of another sampler's is refused; a sampler of a user's own may read them all."""
    if start not in SAMPLERS:
        return
    for field in fields(curriculum):
        owner = field.name.partition("_")[0]
        is_others = owner in SAMPLERS and owner not in (start, StartStates.ROOT)
        if is_others and getattr(curriculum, field.name) != field.default:
            raise ConfigError(f"rollout.curriculum.{field.name} is for rollout.sampling {owner}, and this is {start}")
