"""Settings of the learner; the defaults are the paper's (App. B, Table 3) where it states them."""

import re
from dataclasses import dataclass
from math import inf
from typing import Literal

from treeopo.errors import ConfigError, require
from treeopo.threads import Threads

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


ALL_LINEAR = "all-linear"
"""As `lora.target_modules`: every linear layer below the head; in a mixture, outside the blocks of experts."""


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """The adapter that is trained: W + (alpha / rank) B A beside frozen weights W."""

    rank: int = 16
    """Inner dimension r of A and B."""

    alpha: float = 64
    """The adapter is scaled by alpha / rank."""

    dropout: float = 0.1
    """Share of the adapter's inputs that a training pass drops; sampling and evaluation drop none."""

    target_modules: str | tuple[str, ...] = ALL_LINEAR
    """The layers that get an adapter: all-linear (in a mixture: all outside the experts' blocks), names (q_proj,v_proj
    or a list of them), or a regular expression of whole names, such as .*(q|v)_proj."""

    def __post_init__(self) -> None:
        self._check_targets()
        require(self.rank >= 1, f"lora.rank is {self.rank}; it must be at least 1")
        require(0 < self.alpha < inf, f"lora.alpha is {self.alpha}; it must be positive and finite")
        require(0 <= self.dropout < 1, f"lora.dropout is {self.dropout}; it must lie in [0, 1)")

    @property
    def targets(self) -> str | tuple[str, ...]:
        """`target_modules` read: all-linear, names, or (any other text) a pattern of whole names."""
        given = self.target_modules
        if isinstance(given, str) and re.fullmatch(r"[\w.,\s]*", given):
            given = tuple(name for name in re.split(r"[,\s]+", given) if name)
        return ALL_LINEAR if given == (ALL_LINEAR,) else given

    def _check_targets(self) -> None:
        if isinstance(self.targets, tuple):
            require(
                bool(self.targets) and all(name.strip() for name in self.targets),
                f"lora.target_modules is {self.target_modules!r}, which names no layer; {ALL_LINEAR} names every one",
            )
            return
        try:
            re.compile(self.targets)
        except re.error as error:
            raise ConfigError(
                f"lora.target_modules {self.targets!r} is no regular expression ({error}); one is .*(q|v)_proj, and "
                "names alone (q_proj,v_proj) do as well"
            ) from None


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """AdamW; the learning rate warms up linearly, then falls to zero along a cosine over the run's steps."""

    learning_rate: float = 3e-5
    """AdamW's rate after the warm-up."""

    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""

    warmup_steps: int = 0
    """Steps in which the rate rises from 0 to learning_rate."""

    max_grad_norm: float = 1.0
    """A longer gradient is scaled down to this norm."""

    def __post_init__(self) -> None:
        require(
            0 < self.learning_rate < inf,
            f"optimizer.learning_rate is {self.learning_rate}; it must be positive and finite",
        )
        require(0 <= self.weight_decay < inf, f"optimizer.weight_decay is {self.weight_decay}; it must be 0 or more")
        require(self.warmup_steps >= 0, f"optimizer.warmup_steps is {self.warmup_steps}; it must not be negative")
        require(self.max_grad_norm > 0, f"optimizer.max_grad_norm is {self.max_grad_norm}; it must be positive")


@dataclass(frozen=True, slots=True)
class LearnerSettings:
    """How a batch becomes an optimiser step, and what of the machine that may take."""

    aggregation: Aggregation = "sum"
    """How the tokens' losses become a batch's: sum over tokens, mean over sequences (Tree-OPO §3.4); sequence-mean, a
    mean over each sequence first (GRPO); token-mean over all tokens (DAPO); constant divides by K constant_tokens
    (Dr. GRPO)."""

    constant_tokens: int = 256
    """aggregation constant: what the sum of each of the K sequences is divided by; 256 is the paper's room for a
    completion."""

    correction: Correction = "token-truncate"
    """Importance weights against staleness and the engine's rounding (docs/corrections.md)."""

    correction_low: float | None = None
    """Lower bound of the correction's ratio; none: the preset's own (docs/corrections.md)."""

    correction_high: float | None = None
    """Upper bound of the correction's ratio, inf for none; none: the preset's own (docs/corrections.md)."""

    clip_low: float | None = None
    """PPO's lower epsilon: no gradient where the ratio has fallen below 1 - clip_low; none: no such clip."""

    clip_high: float | None = None
    """PPO's upper epsilon: no gradient where the ratio has risen above 1 + clip_high; none: no such clip."""

    prefix_loss: float = 0.0
    """Weight of the mean negative log-likelihood of the steps of prefixes that lie on a solved trace, beside the policy
    gradient; 0: prefixes are given, and not learned (docs/learner.md)."""

    max_nonfinite_steps: int = 3
    """Steps in a row whose loss or gradient is not finite, and which are skipped, until the run ends."""

    dtype: Literal["bfloat16", "float32"] | None = None
    """Of the frozen base weights; none: bfloat16 on GPUs, float32 on CPUs. The adapter is always float32."""

    threads: Threads = "auto"
    """Torch's threads on a CPU; auto: all cores, or its share of them beside an engine and a teacher."""

    deterministic: bool = False
    """Only algorithms of torch that give the same bits each time: slower on GPUs, and an error where there is none."""

    microbatch_tokens: int | Literal["auto"] = "auto"
    """Tokens of one forward and backward pass at most, a shared prefix counted once; auto: as many as fit the free
    memory, up to 16384 on a GPU and 2048 on a CPU. Where memory runs out they are halved."""

    memory_gib: float | None = None
    """Memory of the learner's process at most, in GiB; none: what machine or GPU, cgroup and ulimit leave free."""

    share_prefixes: Literal["auto", "on", "off"] = "auto"
    """Compute a prefix that sequences share once; auto: where the model's attention allows it."""

    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Compute activations again in the backward pass: less memory for about one more forward pass; auto: where nothing
    else fits a sequence or a useful micro-batch."""

    fsdp: bool = False
    """Shard the frozen base over the processes of torchrun (FSDP2), for one that does not fit a single GPU."""

    lora: LoraSettings = LoraSettings()
    """The adapter."""

    optimizer: OptimizerSettings = OptimizerSettings()
    """The policy's optimiser."""

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
            0 <= self.prefix_loss < inf,
            f"learner.prefix_loss is {self.prefix_loss}; it must be 0 or more, and finite",
        )
        require(
            self.max_nonfinite_steps >= 1, f"learner.max_nonfinite_steps is {self.max_nonfinite_steps}; use 1 or more"
        )
        require(
            self.threads == "auto" or self.threads >= 1, f"learner.threads is {self.threads}; it must be at least 1"
        )
        require(
            self.microbatch_tokens == "auto" or self.microbatch_tokens >= 1,
            f"learner.microbatch_tokens is {self.microbatch_tokens}; use 1 or more, or auto",
        )
        require(
            self.memory_gib is None or 0 < self.memory_gib < inf,
            f"learner.memory_gib is {self.memory_gib}; it must be positive and finite, or left out",
        )

    @property
    def correction_bounds(self) -> tuple[float, float]:
        """(low, high) of the importance ratio: what was given, else the preset's standard."""
        low, high = (0.0, inf) if self.correction == "none" else BOUNDS[self.correction]
        return (
            low if self.correction_low is None else self.correction_low,
            high if self.correction_high is None else self.correction_high,
        )


@dataclass(frozen=True, slots=True)
class DirectValueSettings:
    """Direct value optimisation (docs/methods.md, dvo)."""

    beta: float = 0.1
    """The gain in value that one nat of log-ratio to the base model stands for."""

    def __post_init__(self) -> None:
        require(0 < self.beta < inf, f"dvo.beta is {self.beta}; it must be positive and finite")


Direction = Literal["reverse", "forward"]

_KL_RATE, _KL_CAP, _CRITIC_SIZE = 5e-4, 10.0, (2, 256)  # defaults; any other is refused where it would be ignored


@dataclass(frozen=True, slots=True)
class KlSettings:
    """The divergence from a teacher as a loss (Tree-OPO App. B; docs/methods.md, tree-opo-kl)."""

    direction: Direction = "reverse"
    """reverse: KL(policy || teacher); forward: KL(teacher || policy), which the paper prints and calls reverse."""

    estimate: Literal["sampled", "full"] = "sampled"
    """sampled: from the log-ratio of each sampled token; full: over the vocabulary, with the teacher in the learner."""

    beta: float = 0.1
    """Weight of the divergence. With optimizer separate it only decides whether the gradient is clipped, since Adam
    divides by the gradient's size."""

    optimizer: Literal["separate", "summed"] = "separate"
    """separate: an AdamW of its own at kl.learning_rate; summed: one loss with the policy's, at the policy's rate."""

    learning_rate: float = _KL_RATE
    """Rate of the separate optimiser."""

    weight_cap: float = _KL_CAP
    """Upper bound of the importance ratios in the sampled estimate."""

    def __post_init__(self) -> None:
        require(
            0 < self.beta < inf, f"kl.beta is {self.beta}; it must be positive (tree-opo is tree-opo-kl without it)"
        )
        require(
            0 < self.learning_rate < inf, f"kl.learning_rate is {self.learning_rate}; it must be positive and finite"
        )
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
    """The value function of method actor-critic, and GAE (Tree-OPO App. B; docs/methods.md, actor-critic)."""

    architecture: Literal["head", "decoder"] = "head"
    """head: a linear map of the policy's hidden states; decoder: a Llama decoder of its own, as in the paper."""

    layers: int = _CRITIC_SIZE[0]
    """Layers of the decoder; the paper does not give its size."""

    width: int = _CRITIC_SIZE[1]
    """Hidden size of the decoder, a multiple of 64."""

    discount: float = 0.95
    """GAE's gamma, a token."""

    decay: float = 0.95
    """GAE's lambda; the paper gives none."""

    warmup_steps: int = 20
    """First steps of a run in which only the critic learns; 20 epochs in the paper, steps here."""

    learning_rate: float = 1e-3
    """Rate of the critic's AdamW."""

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
        require(
            0 < self.learning_rate < inf,
            f"critic.learning_rate is {self.learning_rate}; it must be positive and finite",
        )
