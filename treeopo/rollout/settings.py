"""Settings of a rollout batch: size, lengths, temperature and staleness."""

from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from treeopo.errors import ConfigError, require
from treeopo.records import LOWEST_TEMPERATURE


class TeacherReward(StrEnum):
    """What becomes of a completion's per-token rewards k_t = log pi_T - log pi, where the teacher is all there is."""

    TO_GO = "to-go"  # sum of k from t on: the gradient is that of KL(pi || pi_T) over whole completions
    LEAVE_ONE_OUT = "leave-one-out"  # the same minus the mean of the group's others at that position
    PER_TOKEN = "per-token"  # k_t itself, for a critic to make advantages of


class NoSignal(StrEnum):
    """What becomes of a group whose rewards are all the same: it stays, or the next one is drawn in its place."""

    KEEP = "keep"
    REDRAW = "redraw"


@dataclass(frozen=True, slots=True)
class CurriculumSettings:
    """What the samplers of start states take (docs/curriculum.md); each belongs to those named."""

    root_share: float | None = None
    """Share of the groups that start at the root, whatever the sampler; none: 0.5 for mixture, 0 for the others."""

    anneal_roots: float = 0.4
    """anneal: the last share of the run, in which every group starts at the root; UFT's 200 of 500 steps."""

    success_floor: float = 0.05
    """success: what every prefix weighs beside v(1 - v), v being its estimated success; above 0."""

    frontier_low: float = 0.25
    """frontier: lower end of the band of estimated success that groups start in."""

    frontier_high: float = 0.75
    """frontier: upper end of that band."""

    def __post_init__(self) -> None:
        if self.root_share is not None:
            require(0 <= self.root_share <= 1, f"curriculum.root_share is {self.root_share}; it must lie in [0, 1]")
        require(0 <= self.anneal_roots < 1, f"curriculum.anneal_roots is {self.anneal_roots}; it must lie in [0, 1)")
        require(
            0 < self.success_floor < float("inf"),
            f"curriculum.success_floor is {self.success_floor}; it must be positive",
        )
        require(
            0 <= self.frontier_low < self.frontier_high <= 1,
            f"curriculum.frontier_low {self.frontier_low} and frontier_high {self.frontier_high} are no band of [0, 1]",
        )


@dataclass(frozen=True, slots=True)
class MemorySettings:
    """What is kept of the student's outcomes at every prefix (docs/curriculum.md)."""

    retention: float = 0.95
    """What a step leaves of the counts, in (0, 1]; 1 never forgets."""

    strength: float = 2.0
    """How many outcomes at a prefix weigh as much as what is known of its parent and its depth; above 0."""

    def __post_init__(self) -> None:
        require(0 < self.retention <= 1, f"memory.retention is {self.retention}; it must lie in (0, 1]")
        require(0 < self.strength < float("inf"), f"memory.strength is {self.strength}; it must be positive and finite")


@dataclass(frozen=True, slots=True)
class BehaviourSettings:
    """How far engine and learner may disagree about the tokens of the first batch, and of the newest policy later
    (docs/corrections.md)."""

    sequences: int = 8
    """Sequences of the first batch that are compared before it is learned from; 0: none, and no tokens later."""

    max_kl: float = 0.02
    """KL(engine || learner) at most, in nats a token; a bfloat16 engine beside a float32 learner stays below a tenth of
    it."""

    min_mass: float = 0.98
    """Mean ratio of the learner's probability to the engine's at least; it is below 1 for a sampler that truncates."""

    max_growth: float = 20
    """How many times the KL of the first batch a later one's may be; inf: only max_kl counts."""

    def __post_init__(self) -> None:
        require(self.sequences >= 0, f"behaviour.sequences is {self.sequences}; 0 compares nothing")
        require(self.max_kl > 0, f"behaviour.max_kl is {self.max_kl}; it must be positive")
        require(0 <= self.min_mass <= 1, f"behaviour.min_mass is {self.min_mass}; it must lie in [0, 1]")
        require(self.max_growth >= 1, f"behaviour.max_growth is {self.max_growth}; it must be 1 or more")


@dataclass(frozen=True, slots=True)
class RolloutSettings:
    """What one optimiser step learns from; the defaults are the paper's (Tree-OPO App. B, Table 3)."""

    group_size: int = 8
    """N, the rollouts of a group: all from one problem, their rewards compared with each other."""

    batch_size: int = 32
    """K, the rollouts (for sft and dvo, the traces) of an optimiser step; whole groups, so a multiple of group_size."""

    max_staleness: int = 1
    """Versions that the policy that sampled a token may be behind the one that learns from it; 0: the synchronous
    trainer."""

    max_prompt_tokens: int = 512
    """A longer prefix is left out and counted, never cut."""

    max_sequence_tokens: int = 768
    """Prefix and completion together; a rollout that reaches it ends there, ungraded, with reward 0."""

    temperature: float = 1.0
    """That completions are sampled at, without top-p or top-k."""

    sampling: str | None = None
    """Where groups start: a name of `treeopo.rollout.sampling` or `package.module:Name` of a sampler of your own; none:
    the method's. For methods whose groups start at prefixes (docs/curriculum.md)."""

    completions_per_prefix: int = 1
    """c: a group of N has N/c start states with c completions each. 1 is the paper's, N a GRPO group at a prefix."""

    no_signal: NoSignal = NoSignal.KEEP
    """What becomes of a group whose rewards are all the same: `keep`, or `redraw` the next of the batch's candidates in
    its place (DAPO)."""

    candidates: int = 4
    """no_signal redraw: a batch draws at most so many times the groups that it learns from."""

    curriculum: CurriculumSettings = CurriculumSettings()
    """What the samplers take."""

    memory: MemorySettings = MemorySettings()
    """The memory of the student's outcomes, for samplers and advantages that ask for it."""

    behaviour: BehaviourSettings = BehaviourSettings()
    """The comparison of engine and learner before the first step."""

    def __post_init__(self) -> None:
        if self.no_signal not in list(NoSignal):
            raise ConfigError(f"no_signal is {self.no_signal!r}; it is one of {', '.join(NoSignal)}")
        object.__setattr__(self, "no_signal", NoSignal(self.no_signal))
        require(self.group_size >= 1, f"group_size is {self.group_size}; it must be at least 1")
        require(
            self.completions_per_prefix >= 1 and self.group_size % self.completions_per_prefix == 0,
            f"completions_per_prefix is {self.completions_per_prefix}; it must divide group_size {self.group_size}",
        )
        require(self.candidates >= 1, f"candidates is {self.candidates}; it must be at least 1")
        require(
            self.batch_size >= 1 and self.batch_size % self.group_size == 0,
            f"batch_size {self.batch_size} is not a multiple of group_size {self.group_size}",
        )
        require(self.max_staleness >= 0, f"max_staleness is {self.max_staleness}; 0 is the synchronous trainer")
        require(
            0 < self.max_prompt_tokens < self.max_sequence_tokens,
            f"max_prompt_tokens {self.max_prompt_tokens} must leave room in "
            f"max_sequence_tokens {self.max_sequence_tokens}",
        )
        require(
            LOWEST_TEMPERATURE <= self.temperature < float("inf"),
            f"temperature is {self.temperature}; at least {LOWEST_TEMPERATURE}, vLLM's lowest, is wanted",
        )

    @property
    def groups_per_batch(self) -> int:
        return self.batch_size // self.group_size

    @property
    def candidates_per_batch(self) -> int:
        """Groups that a batch draws at most."""
        match self.no_signal:
            case NoSignal.KEEP:
                return self.groups_per_batch
            case NoSignal.REDRAW:
                return self.groups_per_batch * self.candidates
            case _:
                assert_never(self.no_signal)

    def fits(self, prompt_tokens: int, sequence_tokens: int) -> bool:
        """Whether a sequence of this length, prompt included, can be learned from whole."""
        return prompt_tokens <= self.max_prompt_tokens and sequence_tokens <= self.max_sequence_tokens
