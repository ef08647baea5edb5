"""What the student is asked to finish, and how far it may run ahead of the learner."""

from dataclasses import dataclass
from enum import StrEnum

from treeopo.errors import require


class Credit(StrEnum):
    """What becomes of a completion's per-token rewards k_t = log pi_T - log pi, where the teacher is all there is."""

    TO_GO = "to-go"  # sum of k from t on: the gradient is that of KL(pi || pi_T) over whole completions
    LEAVE_ONE_OUT = "leave-one-out"  # the same minus the mean of the group's others at that position
    REWARD = "reward"  # k_t itself, for a critic to make advantages of


@dataclass(frozen=True, slots=True)
class BehaviourSettings:
    """What engine and learner may differ by on the first batch (`treeopo.rollout.behaviour`, docs/vllm.md).

    sequences: that are compared, 0 for none. max_kl: in nats a token; a bfloat16 engine beside a float32 learner stays
    below a tenth of it. min_mass: mean ratio of probabilities, below 1 for a sampler that truncates.
    """

    sequences: int = 8
    max_kl: float = 0.02
    min_mass: float = 0.98

    def __post_init__(self) -> None:
        require(self.sequences >= 0, f"behaviour.sequences is {self.sequences}; 0 compares nothing")
        require(self.max_kl > 0, f"behaviour.max_kl is {self.max_kl}; it must be positive")
        require(0 <= self.min_mass <= 1, f"behaviour.min_mass is {self.min_mass}; it must lie in [0, 1]")


@dataclass(frozen=True, slots=True)
class RolloutSettings:
    """Defaults are the paper's (App. B, Table 3).

    batch_size: samples an optimiser step learns from, in whole groups of group_size. max_staleness: versions the policy
    that sampled a token may be behind the one that learns from it (0 is the synchronous trainer). A prefix longer than
    max_prompt_tokens is left out and counted, never cut; a sample ends at max_sequence_tokens, prefix included.
    """

    group_size: int = 8
    batch_size: int = 32
    max_staleness: int = 1
    max_prompt_tokens: int = 512
    max_sequence_tokens: int = 768
    temperature: float = 1.0
    behaviour: BehaviourSettings = BehaviourSettings()

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
