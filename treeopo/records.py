"""The messages that travel between stages: frozen, slotted, and stamped with where they came from.

Dimension letters used throughout: N samples, P prefixes (tree nodes), T tokens, V vocabulary, E order constraints.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import assert_never

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]

REWARD_DUST = 1e-12
"""Rewards that differ by less are alike: 0.1 + 0.2 and 0.3. Divided by their deviation such dust would be a signal."""

LOWEST_TEMPERATURE = 0.01
"""vLLM samples at this when it is asked for a positive one below it (`vllm.sampling_params`), whoever assumes what."""

_NEVER = -9999.0
"""What servers write for a log-probability of minus infinity, which JSON does not have."""


def known_logprobs(logprobs_T: FloatArray) -> FloatArray:
    """Log-probabilities (T,) as they may be used: NaN, for unknown, where one is not finite (an engine's softmax of low
    precision makes NaN and minus infinity of a token that it did sample), and 0 where rounding put one above 0.
    """
    is_known = (logprobs_T > _NEVER) & (logprobs_T <= 0)
    if is_known.all():
        return logprobs_T
    is_finite = np.isfinite(logprobs_T) & (logprobs_T > _NEVER)
    return np.where(is_finite, np.minimum(logprobs_T, 0), np.nan).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Counted outcomes: `total` samples and their summed rewards `success`, per node (P,) or per sample (N,)."""

    total: npt.NDArray[np.float64]
    success: npt.NDArray[np.float64]


class FinishReason(StrEnum):
    """Why a completion ended: it said so (end of text or a stop string), or it ran out of room."""

    STOP = "stop"
    LENGTH = "length"

    @property
    def is_cut(self) -> bool:
        """Whether the text was cut off, so that it has no final answer."""
        match self:
            case FinishReason.STOP:
                return False
            case FinishReason.LENGTH:
                return True
            case _:
                assert_never(self)


class TokenColumn(StrEnum):
    """Names of `TrainSequence.extras`. STEP_START: 1 at the first token of a step, 0 elsewhere. GAIN: V(s') - V(s) of
    the step the token belongs to. REFERENCE: its log-probability under the base model without its adapter. TEACHER:
    the same under the teacher, at temperature 1.
    """

    STEP_START = "step_start"
    GAIN = "gain"
    REFERENCE = "reference_logprob"
    TEACHER = "teacher_logprob"


class WeightFormat(StrEnum):
    """The form in which a policy travels from the learner to the engine.

    MERGED: one safetensors file of base and adapter multiplied out, loaded into the running engine; requests in flight
    go on under it. ADAPTER: a PEFT adapter directory that the engine applies beside the base; a request keeps the
    version it began with.
    """

    MERGED = "merged"
    ADAPTER = "adapter"


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with its gold answer; `solution` is the worked solution where the set has one."""

    id: str
    question: str
    answer: str
    solution: str | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to continue. The engine's answer depends on `seed`, never on what else is in flight."""

    token_ids: Sequence[int] | IntArray
    max_tokens: int
    seed: int
    temperature: float = 1.0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """What an engine returned for one request.

    token_ids (T,) include the stop tokens; logprobs (T,) are of the distribution each token was sampled from, NaN where
    the engine gave none that can be (`known_logprobs`); versions (T,) name the policy version that produced each token.
    """

    token_ids: IntArray
    logprobs: FloatArray
    versions: IntArray
    text: str
    finish_reason: FinishReason

    def __post_init__(self) -> None:
        object.__setattr__(self, "logprobs", known_logprobs(self.logprobs))


@dataclass(frozen=True, slots=True)
class Prompt:
    """What one rollout starts from: a node of a problem's tree and its prefix as tokens (T,).

    depth: steps behind the question, 0 at the root. question_tokens: of the T tokens, those of the question; the others
    are the steps. leads_to_success: the store has a solved trace through it.
    """

    node: int
    token_ids: IntArray
    depth: int
    question_tokens: int
    leads_to_success: bool


@dataclass(frozen=True, slots=True)
class PromptGroup:
    """Group `number` of a run: N start nodes of one problem. A pure function of (seed, number, store), and of the
    outcomes that its batch may know where the start states or the advantages are made from those: then `history` (P,)
    has them, for each node of the tree.
    """

    number: int
    problem: int
    parent: IntArray  # (P,) the problem's tree, -1 at the root
    prompts: tuple[Prompt, ...]
    history: Outcomes | None = None


@dataclass(frozen=True, slots=True)
class Rollout:
    """A prompt, the student's completion, and the reward of the finished trace.

    served_version: of the policy that the engine served when the completion ended. seed: of the engine's request.
    """

    prompt: Prompt
    completion: Completion
    reward: float
    served_version: int
    seed: int


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """A drawn group with its graded samples, in the order they were drawn.

    extra: rollouts that are not learned from; the baseline of advantage method mc is made of them.
    """

    drawn: PromptGroup
    rollouts: tuple[Rollout, ...]
    extra: tuple[Rollout, ...] = ()

    @property
    def has_signal(self) -> bool:
        """Whether the rewards differ: alike ones teach nothing."""
        rewards = [rollout.reward for rollout in self.rollouts]
        return max(rewards) - min(rewards) > REWARD_DUST


@dataclass(frozen=True, slots=True)
class TrainSequence:
    """One rollout as the learner sees it: only the C = T - prefix_length completion tokens carry a policy gradient.

    token_ids (T,) are the question's, the prefix's steps' and then the completion's. The arrays that follow are (C,), a
    number per completion token: advantages (the weight of the token in the loss); behaviour_logprobs, of the
    distribution each was sampled from (NaN: unknown); versions, of the policy that sampled it; extras, columns that one
    loss asks for by name. question_length: where the steps of the prefix begin (None: it has none). prefix_is_solved:
    the store has a solved trace that begins with them.
    """

    token_ids: IntArray
    prefix_length: int
    advantages: FloatArray
    behaviour_logprobs: FloatArray
    versions: IntArray
    extras: Mapping[str, FloatArray] = field(default_factory=dict)
    question_length: int | None = None
    prefix_is_solved: bool = False

    @property
    def completion_length(self) -> int:
        return len(self.token_ids) - self.prefix_length

    @property
    def step_tokens(self) -> int:
        """Tokens of the prefix's steps, behind the question."""
        return 0 if self.question_length is None else self.prefix_length - self.question_length


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """Batch `number` of a run, learned from by the policy of version `number`.

    values (K,): the baseline V of each sequence's prefix, where its advantages were made of the task's rewards.
    """

    number: int
    sequences: tuple[TrainSequence, ...]
    metrics: dict[str, float]
    values: npt.NDArray[np.float64] | None = None
