"""Importance weights against staleness and engine mismatch; docs/corrections.md compares the presets.

A preset is three choices: which ratio is judged, what happens to one out of bounds, and what the PPO clip looks at.
Ratios are pi_current / pi_behaviour. The behaviour log-probability of a token is that of the policy version that
sampled it, so a completion that spans versions needs nothing special.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple, assert_never, get_args

import torch
from torch import Tensor

from treeopo.learner.losses import Forward
from treeopo.learner.microbatch import MicroBatch
from treeopo.learner.settings import Correction

LOG_LIMIT = 20.0
"""Log-ratios are cut to +-20 before exp, so that no weight or its square overflows; no bound in use comes near."""


@dataclass(frozen=True, slots=True)
class ImportanceWeights:
    """What a correction makes of C completion tokens, all without gradient.

    weight_C multiplies the gradient of log pi(c_t); judged_C is the ratio that was held against the bounds, limited_C
    where it was out of them; clip_ratio_C is the ratio that the PPO clip holds near 1.
    """

    weight_C: Tensor
    judged_C: Tensor
    limited_C: Tensor
    clip_ratio_C: Tensor


class Preset(NamedTuple):
    """judge: the log-ratio that is held against the bounds. limit: the weight made of the ratio. is_decoupled: the PPO
    clip looks at the policy against the one at the start of the step, which is then a factor of the weight too.
    """

    judge: Callable[[Tensor, MicroBatch], Tensor]
    limit: Callable[[Tensor, float, float], Tensor]
    is_decoupled: bool = False


def correct(micro: MicroBatch, forward: Forward, correction: Correction, low: float, high: float) -> ImportanceWeights:
    """The weights of `correction` for a micro-batch, with ratios judged against [low, high]."""
    preset = PRESETS[correction]
    log_ratio_C = (forward.current_C - micro.behaviour_C).detach()
    judged_C = _exp(preset.judge(log_ratio_C, micro))
    weight_C, clip_ratio_C = preset.limit(judged_C, low, high), _exp(log_ratio_C)
    if preset.is_decoupled:  # pi_theta / pi_proximal, which only dropout moves from 1 in a single step
        clip_ratio_C = _exp(forward.logprobs_C.detach() - forward.current_C)
        weight_C = weight_C * clip_ratio_C
    return ImportanceWeights(weight_C, judged_C, _outside(judged_C, low, high), clip_ratio_C)


def by_sequence(correction: Correction) -> bool:
    """Whether `correction` judges a completion as a whole."""
    return PRESETS[correction].judge is not _token


def _token(log_ratio_C: Tensor, micro: MicroBatch) -> Tensor:
    return log_ratio_C


def _sequence(log_ratio_C: Tensor, micro: MicroBatch) -> Tensor:
    """Of the whole completion, prod_t ratio_t, at each of its tokens."""
    rows = int(micro.row_C.max()) + 1
    return log_ratio_C.new_zeros(rows).index_add(0, micro.row_C, log_ratio_C)[micro.row_C]


def _geometric_mean(log_ratio_C: Tensor, micro: MicroBatch) -> Tensor:
    """(prod_t ratio_t)^(1/T): a sequence's ratio without its length."""
    return _sequence(log_ratio_C, micro) / micro.length_C


def _one(ratio_C: Tensor, low: float, high: float) -> Tensor:
    return torch.ones_like(ratio_C)


def _truncate(ratio_C: Tensor, low: float, high: float) -> Tensor:
    return ratio_C.clamp(low, high)


def _mask(ratio_C: Tensor, low: float, high: float) -> Tensor:
    return ratio_C.masked_fill(_outside(ratio_C, low, high), 0.0)


def _keep(ratio_C: Tensor, low: float, high: float) -> Tensor:
    """Weight 1 within the bounds: a filter, not a weight."""
    return (~_outside(ratio_C, low, high)).to(ratio_C.dtype)


def _outside(ratio_C: Tensor, low: float, high: float) -> Tensor:
    return (ratio_C < low) | (ratio_C > high)


def _exp(log_ratio_C: Tensor) -> Tensor:
    return log_ratio_C.detach().clamp(-LOG_LIMIT, LOG_LIMIT).exp()


def _preset(correction: Correction) -> Preset:
    match correction:
        case "none":
            return Preset(_token, _one)
        case "token-truncate":
            # Ionides (2008), truncated importance sampling; per token as in IMPALA (Espeholt et al. 2018) and, against
            # the engine's mismatch, Yao et al. (2025), "Your efficient RL framework secretly brings you off-policy RL
            # training".
            return Preset(_token, _truncate)
        case "sequence-truncate":
            # The same of a whole completion, whose untruncated weight is the unbiased one: Liu, Li et al. (2025), "When
            # speed kills stability: demystifying RL collapse from the training-inference mismatch".
            return Preset(_sequence, _truncate)
        case "token-mask":
            # IcePop: Ling team (2025), "Every step evolves", arXiv 2510.18855, equation of section 4.
            return Preset(_token, _mask)
        case "sequence-mask":
            # Masked importance sampling, Liu, Li et al. (2025), as above; TRL's default.
            return Preset(_sequence, _mask)
        case "geometric-mask":
            # Geometric rejection, Liu, Li et al. (2025); the ratio is that of GSPO (Zheng et al. 2025, eq. 7).
            return Preset(_geometric_mean, _keep)
        case "decoupled-ppo":
            # Hilton et al. (2022), "Batch size-invariance for policy optimization", eq. 3, with the weight cut off as
            # in AReaL (Fu et al. 2025, section 5.2). The proximal policy is the learner's at the start of the step.
            return Preset(_token, _mask, is_decoupled=True)
        case _:
            assert_never(correction)


PRESETS: Final[Mapping[Correction, Preset]] = {name: _preset(name) for name in get_args(Correction)}
