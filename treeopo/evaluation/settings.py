"""Settings of the evaluation beside training. Needs no event loop."""

from dataclasses import dataclass

from treeopo.errors import require


@dataclass(frozen=True, slots=True)
class PeriodicSettings:
    """Greedy pass@1 beside training; the untrained student and the last version are always evaluated."""

    problems: str | None = None
    """The problem set, named as for `treeopo eval`; none: no evaluation."""

    every: int = 20
    """Optimiser steps between two evaluations."""

    limit: int = 100
    """Its first so many problems."""

    def __post_init__(self) -> None:
        require(self.every >= 1, f"evaluation.every is {self.every}; it must be at least 1")
        require(self.limit >= 1, f"evaluation.limit is {self.limit}; it must be at least 1")
