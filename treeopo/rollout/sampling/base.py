"""What a sampler of start states is, and what it chooses from."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt
from numpy.random import Generator
from treeopo_storage.protocol import Structure

from treeopo.rollout.sampling.known import Known
from treeopo.rollout.settings import CurriculumSettings

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Prefixes:
    """The P prefixes of a store, problem after problem, as `structure` has them. usable_P: those that a group may start
    from: unfinished, and no longer than `max_prompt_tokens`. starts: start states of a group.
    """

    structure: Structure
    usable_P: npt.NDArray[np.bool_]
    starts: int
    curriculum: CurriculumSettings = field(default_factory=CurriculumSettings)

    def rows(self, problem: int) -> slice:
        """Where the problem's prefixes stand, its root first."""
        first_node = self.structure.first_node
        return slice(int(first_node[problem]), int(first_node[problem + 1]))

    def usable_rows(self, problem: int) -> Rows:
        """Those of them that a group may start from."""
        rows = self.rows(problem)
        usable: Rows = rows.start + np.flatnonzero(self.usable_P[rows])
        return usable

    @cached_property
    def problems(self) -> Rows:
        """The problems with a usable prefix."""
        return np.unique(self.structure.problem[self.usable_P]).astype(np.int64)

    @cached_property
    def roots(self) -> Rows:
        """Rows of the usable roots."""
        return np.flatnonzero(self.usable_P & (self.structure.parent < 0))


class StartSampler(Protocol):
    """Chooses the start states of one group. Registered in `treeopo.rollout.sampling.names`, made as `Name(prefixes)`.

    candidates (K,) is what one draw is made among; a store that has none for it cannot be trained on.
    """

    @property
    def candidates(self) -> Rows: ...

    def choose(self, random: Generator, known: Known) -> Rows:
        """Rows (prefixes.starts,) of usable prefixes of one problem, by `random` and `known` alone."""
        ...


def pick(random: Generator, pool: Rows, size: int, weight: npt.NDArray[np.float64] | None = None) -> Rows:
    """`size` of the pool's rows, uniformly or by positive weights; with repetition only where the pool has fewer."""
    share = None if weight is None else weight / weight.sum()
    return random.choice(pool, size=size, replace=len(pool) < size, p=share)
