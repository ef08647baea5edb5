"""Settings of the learner; the defaults are the paper's (App. B, Table 3) where it states them."""

from dataclasses import dataclass
from typing import Literal

from treeopo.errors import require

Aggregation = Literal["sum", "sequence-mean", "token-mean"]
Correction = Literal["none", "token-truncate"]


@dataclass(frozen=True, slots=True)
class LoraSettings:
    rank: int = 16
    alpha: float = 64
    dropout: float = 0.1
    target_modules: str = "all-linear"

    def __post_init__(self) -> None:
        require(self.rank >= 1, f"lora.rank is {self.rank}; it must be at least 1")
        require(self.alpha > 0, f"lora.alpha is {self.alpha}; it must be positive")
        require(0 <= self.dropout < 1, f"lora.dropout is {self.dropout}; it must lie in [0, 1)")


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """AdamW; the learning rate warms up linearly, then falls to zero along a cosine over the run's steps."""

    learning_rate: float = 3e-5
    weight_decay: float = 0.0
    warmup_steps: int = 0
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, f"optimizer.learning_rate is {self.learning_rate}; it must be positive")
        require(self.weight_decay >= 0, f"optimizer.weight_decay is {self.weight_decay}; it must not be negative")
        require(self.warmup_steps >= 0, f"optimizer.warmup_steps is {self.warmup_steps}; it must not be negative")
        require(self.max_grad_norm > 0, f"optimizer.max_grad_norm is {self.max_grad_norm}; it must be positive")


@dataclass(frozen=True, slots=True)
class LearnerSettings:
    """aggregation: how token terms become one loss (SPEC §6). correction: importance weights against staleness and
    engine mismatch, truncated at correction_cap. dtype of the frozen base weights (None: bfloat16 on GPUs, float32 on
    CPUs); the adapter is always float32. threads: torch's on a CPU. microbatch_tokens: of a forward pass, with padding.
    """

    aggregation: Aggregation = "sum"
    correction: Correction = "token-truncate"
    correction_cap: float = 2.0
    dtype: Literal["bfloat16", "float32"] | None = None
    threads: int = 1
    microbatch_tokens: int = 16384
    lora: LoraSettings = LoraSettings()
    optimizer: OptimizerSettings = OptimizerSettings()

    def __post_init__(self) -> None:
        require(self.correction_cap > 0, f"learner.correction_cap is {self.correction_cap}; it must be positive")
        require(self.threads >= 1, f"learner.threads is {self.threads}; it must be at least 1")
        require(self.microbatch_tokens >= 1, f"learner.microbatch_tokens is {self.microbatch_tokens}; use 1 or more")
