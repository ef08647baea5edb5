"""What a batch may know of the run when its groups are drawn."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from treeopo.errors import ConfigError
from treeopo.records import Outcomes


def _none() -> Outcomes:
    raise ConfigError(
        "rollout.sampling asks for the student's outcomes, and this method has none; choose another sampler"
    )


@dataclass(frozen=True)
class Known:
    """progress: the share of the run's steps before the batch, in [0, 1). The rest is of the batches that were learned
    from by the time the batch may start, and is worked out when it is first asked for (`treeopo.rollout.memory`).

    Raises:
        ConfigError: outcomes are asked for, and the method samples nothing from the student.
    """

    progress: float = 0.0
    count: Callable[[], Outcomes] = _none
    estimate: Callable[[Outcomes], npt.NDArray[np.float64]] | None = None

    @cached_property
    def outcomes(self) -> Outcomes:
        """The student's outcomes (P,) by start node, old ones faded."""
        return self.count()

    @cached_property
    def success(self) -> npt.NDArray[np.float64]:
        """The student's success from each prefix, in (0, 1), as `treeopo.tree.estimated_success` has it."""
        outcomes = self.outcomes
        assert self.estimate is not None, "whoever counts outcomes also estimates by them"
        return self.estimate(outcomes)
