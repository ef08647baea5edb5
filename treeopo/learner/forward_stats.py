"""Statistics of a step's forward passes: padding, tokens saved by sharing prefixes, entropy."""

from typing import Literal, assert_never

import torch
from torch import Tensor

from treeopo.errors import ConfigError
from treeopo.learner.distributed import Team
from treeopo.learner.packing import Packing
from treeopo.learner.policy import LoraPolicy


class ForwardStats:
    """Sums over the micro-batches of a step."""

    def __init__(self) -> None:
        self._tokens = self._run = self._distinct = self._entropy = self._completion_tokens = 0.0

    def add(self, packing: Packing, packs: bool, entropy_C: Tensor) -> None:
        places = sum(grid.numel() for grid in packing.grids)
        self._distinct += len(packing.tokens_U)
        self._tokens += packing.places
        self._run += len(packing.tokens_U) if packs else places
        self._entropy += entropy_C.sum().item()
        self._completion_tokens += len(entropy_C)

    def add_over(self, team: Team) -> None:
        """Make the sums those of every rank."""
        sums = [self._tokens, self._run, self._distinct, self._entropy, self._completion_tokens]
        total = team.all_reduce_sum(torch.tensor(sums, dtype=torch.float64)).tolist()
        self._tokens, self._run, self._distinct, self._entropy, self._completion_tokens = total

    def metrics(self) -> dict[str, float]:
        """padding_share: of the tokens run through the model; shared_share: of the sequences' tokens, those that
        needed no run of their own; entropy: mean over completion tokens, in nats, under dropout if there is any.
        Absent if nothing was run.
        """
        if not self._run:
            return {}
        return {
            "learner/padding_share": max(0.0, 1 - self._tokens / self._run),
            "learner/shared_share": 1 - self._distinct / self._tokens,
            "learner/entropy": self._entropy / self._completion_tokens,
        }


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
