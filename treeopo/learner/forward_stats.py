"""Statistics of a step's forward passes: padding, tokens saved by sharing prefixes, entropy, likelihood of prefixes."""

from typing import Literal, assert_never

import torch
from torch import Tensor

from treeopo.errors import ConfigError
from treeopo.learner.distributed import Team
from treeopo.learner.microbatch import PrefixTokens
from treeopo.learner.packing import Packing
from treeopo.learner.policy import LoraPolicy


class ForwardStats:
    """Sums over the micro-batches of a step."""

    def __init__(self) -> None:
        self._tokens = self._run = self._distinct = self._entropy = self._completion_tokens = 0.0
        self._prefixes = self._prefix_tokens = self._prefix_logprob = 0.0

    def add(self, packing: Packing, packs: bool, entropy_C: Tensor) -> None:
        places = sum(grid.numel() for grid in packing.grids)
        self._distinct += len(packing.tokens_U)
        self._tokens += packing.places
        self._run += len(packing.tokens_U) if packs else places
        self._entropy += entropy_C.sum().item()
        self._completion_tokens += len(entropy_C)

    def add_prefixes(self, prefix: PrefixTokens, logprobs_X: Tensor) -> None:
        """logprobs_X: of the micro-batch's step tokens under the policy without dropout, without gradient."""
        self._prefixes += prefix.prefixes
        self._prefix_tokens += prefix.count_X.sum().item()
        self._prefix_logprob += (prefix.count_X * logprobs_X).sum(dtype=torch.float64).item()

    def add_over(self, team: Team) -> None:
        """Make the sums those of every rank."""
        passes = [self._tokens, self._run, self._distinct, self._entropy, self._completion_tokens]
        prefixes = [self._prefixes, self._prefix_tokens, self._prefix_logprob]
        total = team.all_reduce_sum(torch.tensor([*passes, *prefixes], dtype=torch.float64)).tolist()
        self._tokens, self._run, self._distinct, self._entropy, self._completion_tokens = total[:5]
        self._prefixes, self._prefix_tokens, self._prefix_logprob = total[5:]

    def metrics(self) -> dict[str, float]:
        """padding_share: of the tokens run through the model; shared_share: of the sequences' tokens, those that
        needed no run of their own; entropy: mean over completion tokens, in nats, under dropout if there is any.
        prefix_logprob: log pi(steps | question) in nats, mean over the sequences that were run and have a step;
        prefix_logprob_per_token: the same sum over their step tokens. Absent if nothing was run, or has steps.
        """
        if not self._run:
            return {}
        metrics = {
            "learner/padding_share": max(0.0, 1 - self._tokens / self._run),
            "learner/shared_share": 1 - self._distinct / self._tokens,
            "learner/entropy": self._entropy / self._completion_tokens,
        }
        if self._prefixes:
            metrics["learner/prefix_logprob"] = self._prefix_logprob / self._prefixes
            metrics["learner/prefix_logprob_per_token"] = self._prefix_logprob / self._prefix_tokens
        return metrics


def shares(setting: Literal["auto", "on", "off"], policy: LoraPolicy) -> bool:
    """Whether prefixes are computed once.

    Raises:
        ConfigError: they are to be, but this model's attention is not plain causal attention.
    """
    match setting:
        case "auto":
            return policy.packs
        case "on":
            if not policy.packs:
                raise ConfigError(
                    "learner.share_prefixes is on, but this model has attention that cannot be packed (windows, "
                    "recurrences or an implementation of its own); use auto or off"
                )
            return True
        case "off":
            return False
        case _:
            assert_never(setting)
