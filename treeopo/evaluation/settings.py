"""What a run is evaluated on beside training. Needs no event loop."""

from dataclasses import dataclass

from treeopo.errors import require


@dataclass(frozen=True, slots=True)
class PeriodicSettings:
    """problems: the set to evaluate on while training (None: none), its first `limit` problems, greedily. every: so
    many optimiser steps apart; the untrained student and the last version are evaluated too.
    """

    problems: str | None = None
    every: int = 20
    limit: int = 100

    def __post_init__(self) -> None:
        require(self.every >= 1, f"evaluation.every is {self.every}; it must be at least 1")
        require(self.limit >= 1, f"evaluation.limit is {self.limit}; it must be at least 1")
