"""Settings of the learner; the defaults are the paper's (App. B, Table 3) where it states them."""

from dataclasses import dataclass
from typing import Literal

from treeopo.errors import require

Aggregation = Literal["sum", "sequence-mean", "token-mean", "constant"]
Correction = Literal[
    "none",
    "token-truncate",
    "sequence-truncate",
    "token-mask",
    "sequence-mask",
    "geometric-mask",
    "decoupled-ppo",
]

BOUNDS: dict[Correction, tuple[float, float]] = {
    "token-truncate": (0.0, 2.0),  # verl's and ms-swift's threshold
    "sequence-truncate": (0.0, 2.0),  # verl's and prime-rl's
    "token-mask": (0.5, 5.0),  # IcePop's alpha and beta (Ring-1T, arXiv 2510.18855)
    "sequence-mask": (0.0, 3.0),  # TRL's
    "geometric-mask": (0.99, 1.01),  # ten times verl's 0.999 to 1.001, which leaves no room for staleness
    "decoupled-ppo": (0.0, 5.0),  # AReaL's behav_imp_weight_cap
}
"""The standard (low, high) of each correction's importance ratio, and where it comes from."""


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
    """aggregation: how token terms become one loss (SPEC §6); constant divides by K constant_tokens. correction:
    weights against staleness and engine mismatch, ratios bounded by correction_low and correction_high (None: the
    preset's standard). clip_low, clip_high: PPO's epsilons (None: no clip on that side). max_nonfinite_steps: so many
    in a row end the run. dtype of the frozen base weights (None: bfloat16 on GPUs, float32 on CPUs); the adapter is
    always float32. threads: torch's on a CPU. microbatch_tokens: of a forward pass, a shared prefix counted once.
    share_prefixes: compute it once (auto: where the model can). gradient_checkpointing: less memory, one more forward.
    fsdp: cut the frozen base over the processes that torchrun started, for one that does not fit a single GPU.
    deterministic: torch's algorithms that give the same bits each time, slower on GPUs; one that cannot is an error.
    """

    aggregation: Aggregation = "sum"
    constant_tokens: int = 256  # the paper's room for a completion
    correction: Correction = "token-truncate"
    correction_low: float | None = None
    correction_high: float | None = None
    clip_low: float | None = None
    clip_high: float | None = None
    max_nonfinite_steps: int = 3
    dtype: Literal["bfloat16", "float32"] | None = None
    threads: int = 1
    deterministic: bool = False
    microbatch_tokens: int = 16384
    share_prefixes: Literal["auto", "on", "off"] = "auto"
    gradient_checkpointing: bool = False
    fsdp: bool = False
    lora: LoraSettings = LoraSettings()
    optimizer: OptimizerSettings = OptimizerSettings()

    def __post_init__(self) -> None:
        require(self.constant_tokens >= 1, f"learner.constant_tokens is {self.constant_tokens}; use 1 or more")
        require(
            self.correction != "none" or (self.correction_low is None and self.correction_high is None),
            "learner.correction none has no ratio to bound; leave out correction_low and correction_high",
        )
        low, high = self.correction_bounds
        require(0 <= low < high, f"learner.correction bounds are {low} and {high}; they must be 0 <= low < high")
        require(
            self.clip_low is None or 0 < self.clip_low <= 1,
            f"learner.clip_low is {self.clip_low}; PPO's lower epsilon lies in (0, 1]",
        )
        require(
            self.clip_high is None or self.clip_high > 0,
            f"learner.clip_high is {self.clip_high}; PPO's upper epsilon is positive",
        )
        require(
            self.max_nonfinite_steps >= 1, f"learner.max_nonfinite_steps is {self.max_nonfinite_steps}; use 1 or more"
        )
        require(self.threads >= 1, f"learner.threads is {self.threads}; it must be at least 1")
        require(self.microbatch_tokens >= 1, f"learner.microbatch_tokens is {self.microbatch_tokens}; use 1 or more")

    @property
    def correction_bounds(self) -> tuple[float, float]:
        """(low, high) of the importance ratio: what was given, else the preset's standard."""
        low, high = BOUNDS.get(self.correction, (0.0, float("inf")))
        return (
            low if self.correction_low is None else self.correction_low,
            high if self.correction_high is None else self.correction_high,
        )


@dataclass(frozen=True, slots=True)
class DirectValueSettings:
    """beta: how much gain in value a nat of log-ratio stands for (SPEC §9)."""

    beta: float = 0.1

    def __post_init__(self) -> None:
        require(self.beta > 0, f"dvo.beta is {self.beta}; it must be positive")


Direction = Literal["reverse", "forward"]

_KL_RATE, _KL_CAP, _CRITIC_SIZE = 5e-4, 10.0, (2, 256)  # defaults; any other is refused where it would be ignored


@dataclass(frozen=True, slots=True)
class KlSettings:
    """beta KL to the teacher (SPEC §7): reverse is KL(policy || teacher), forward the other. estimate: sampled, from
    the tokens' log-ratios, or full, over the vocabulary. optimizer: separate, an AdamW of its own at learning_rate on
    beta KL alone (where beta has no say but in clipping: Adam divides by the gradient's size), or summed with the
    policy's loss at the policy's rate. weight_cap bounds importance ratios of the sampled estimate.
    """

    direction: Direction = "reverse"
    estimate: Literal["sampled", "full"] = "sampled"
    beta: float = 0.1
    optimizer: Literal["separate", "summed"] = "separate"
    learning_rate: float = _KL_RATE
    weight_cap: float = _KL_CAP

    def __post_init__(self) -> None:
        require(self.beta > 0, f"kl.beta is {self.beta}; it must be positive (tree-opo is tree-opo-kl without it)")
        require(self.learning_rate > 0, f"kl.learning_rate is {self.learning_rate}; it must be positive")
        require(
            self.optimizer == "separate" or self.learning_rate == _KL_RATE,
            "kl.learning_rate belongs to kl.optimizer separate; a summed loss is stepped at the policy's rate",
        )
        require(
            self.estimate == "sampled" or self.weight_cap == _KL_CAP,
            "kl.weight_cap belongs to kl.estimate sampled; whole distributions need no importance ratios",
        )
        require(self.weight_cap > 0, f"kl.weight_cap is {self.weight_cap}; it must be positive")


@dataclass(frozen=True, slots=True)
class CriticSettings:
    """architecture: head, a linear map of the policy's hidden states, or decoder, a Llama of its own with `layers` of
    `width`. discount and decay: gamma and lambda of GAE (the paper gives no lambda). warmup_steps: first steps of a
    run in which only the critic learns (the paper's 20 warm-up epochs).
    """

    architecture: Literal["head", "decoder"] = "head"
    layers: int = _CRITIC_SIZE[0]
    width: int = _CRITIC_SIZE[1]
    discount: float = 0.95
    decay: float = 0.95
    warmup_steps: int = 20
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        require(self.layers >= 1, f"critic.layers is {self.layers}; it must be at least 1")
        require(self.width >= 64 and self.width % 64 == 0, f"critic.width is {self.width}; it must be a multiple of 64")
        require(
            self.architecture == "decoder" or (self.layers, self.width) == _CRITIC_SIZE,
            "critic.layers and critic.width belong to critic.architecture decoder; a head has neither",
        )
        require(0 <= self.discount <= 1, f"critic.discount is {self.discount}; gamma lies in [0, 1]")
        require(0 <= self.decay <= 1, f"critic.decay is {self.decay}; lambda lies in [0, 1]")
        require(self.warmup_steps >= 0, f"critic.warmup_steps is {self.warmup_steps}; it must not be negative")
        require(self.learning_rate > 0, f"critic.learning_rate is {self.learning_rate}; it must be positive")
