"""Counts over a whole run, with exponential forgetting: what the advantages of scope `history` are read from."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from treeopo.errors import ConfigError, RunError
from treeopo.records import Outcomes

FloatArray = npt.NDArray[np.float64]

# Past this the counts are divided through, long before float64 overflows.
_LARGEST_WEIGHT = 1e100


class RunningCounts:
    """How many samples started at each of P nodes, and their summed rewards; old ones fade by `retention` a step.

    Instead of shrinking every count at every step, new samples weigh more: `advance` is O(1).
    """

    def __init__(self, P: int, retention: float = 1.0) -> None:
        """Start empty. `retention` in (0, 1] is what one step leaves of a count; 1 never forgets."""
        if not 0.0 < retention <= 1.0:
            raise ConfigError(f"retention = {retention}: expected a share in (0, 1]")
        self._retention = retention
        self._total_P: FloatArray = np.zeros(P)
        self._success_P: FloatArray = np.zeros(P)
        self._weight = 1.0

    def record(self, node: npt.ArrayLike, reward: npt.ArrayLike) -> None:
        """Add samples: start nodes (N,) among the P nodes, rewards (N,)."""
        node_N = np.asarray(node)
        np.add.at(self._total_P, node_N, self._weight)
        np.add.at(self._success_P, node_N, self._weight * np.asarray(reward, dtype=np.float64))

    def advance(self) -> None:
        """End a step: everything recorded so far counts `retention` times what it did."""
        self._weight /= self._retention
        if self._weight > _LARGEST_WEIGHT:
            self._total_P /= self._weight
            self._success_P /= self._weight
            self._weight = 1.0

    def outcomes(self, rows: slice = slice(None)) -> Outcomes:
        """What is left of the nodes' counts at present: of all P, or of the `rows` of one problem's tree."""
        return Outcomes(self._total_P[rows] / self._weight, self._success_P[rows] / self._weight)

    def copy(self) -> Self:
        """The same counts, to go on with apart from these."""
        return deepcopy(self)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return copies of the arrays that `from_state` restores exactly."""
        return {
            "total": self._total_P.copy(),
            "success": self._success_P.copy(),
            "weight": np.array(self._weight),
            "retention": np.array(self._retention),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, npt.NDArray[Any]]) -> Self:
        """Restore what `state` returned. Raises RunError if an array is missing."""
        missing = {"total", "success", "weight", "retention"} - set(state)
        if missing:
            raise RunError(f"running counts: the checkpoint lacks {', '.join(sorted(missing))}")
        restored = cls(state["total"].size, float(state["retention"]))
        restored._total_P[:] = state["total"]
        restored._success_P[:] = state["success"]
        restored._weight = float(state["weight"])
        return restored
