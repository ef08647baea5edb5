"""Settings of a rollout batch: size, lengths, temperature and staleness."""

from dataclasses import dataclass
from enum import StrEnum

from treeopo.errors import require


class TeacherReward(StrEnum):
    """What becomes of a completion's per-token rewards k_t = log pi_T - log pi, where the teacher is all there is."""

    TO_GO = "to-go"  # sum of k from t on: the gradient is that of KL(pi || pi_T) over whole completions
    LEAVE_ONE_OUT = "leave-one-out"  # the same minus the mean of the group's others at that position
    PER_TOKEN = "per-token"  # k_t itself, for a critic to make advantages of


@dataclass(frozen=True, slots=True)
class BehaviourSettings:
    """How far engine and learner may disagree about the tokens of the first batch (docs/vllm.md)."""

    sequences: int = 8
    """Sequences of the first batch that are compared; 0: none."""

    max_kl: float = 0.02
    """KL(engine || learner) at most, in nats a token; a bfloat16 engine beside a float32 learner stays below a tenth of
    it."""

    min_mass: float = 0.98
    """Mean ratio of the learner's probability to the engine's at least; it is below 1 for a sampler that truncates."""

    def __post_init__(self) -> None:
        require(self.sequences >= 0, f"behaviour.sequences is {self.sequences}; 0 compares nothing")
        require(self.max_kl > 0, f"behaviour.max_kl is {self.max_kl}; it must be positive")
        require(0 <= self.min_mass <= 1, f"behaviour.min_mass is {self.min_mass}; it must lie in [0, 1]")


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
    the method's. For methods whose groups start at prefixes."""

    behaviour: BehaviourSettings = BehaviourSettings()
    """The comparison of engine and learner before the first step."""

    def __post_init__(self) -> None:
        require(self.group_size >= 1, f"group_size is {self.group_size}; it must be at least 1")
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
        require(0 < self.temperature < float("inf"), f"temperature is {self.temperature}; it must be positive")

    @property
    def groups_per_batch(self) -> int:
        return self.batch_size // self.group_size

    def fits(self, prompt_tokens: int, sequence_tokens: int) -> bool:
        """Whether a sequence of this length, prompt included, can be learned from whole."""
        return prompt_tokens <= self.max_prompt_tokens and sequence_tokens <= self.max_sequence_tokens
