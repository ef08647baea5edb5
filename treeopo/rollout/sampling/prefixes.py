"""Uniform prefixes (Tree-OPO, arXiv 2509.09284, Alg. 1): a problem by its number of them, then N of its own."""

import numpy as np
import numpy.typing as npt
from numpy.random import Generator

from treeopo.rollout.sampling.base import Prefixes, pick


class UniformPrefixes:
    """N prefixes of one problem, uniformly; the problem is that of a prefix drawn uniformly from the whole store."""

    def __init__(self, prefixes: Prefixes) -> None:
        self._prefixes = prefixes
        self.candidates: npt.NDArray[np.int64] = np.flatnonzero(prefixes.usable_P)

    def choose(self, random: Generator) -> npt.NDArray[np.int64]:
        first = self.candidates[random.integers(len(self.candidates))]
        rows = self._prefixes.rows(int(self._prefixes.structure.problem[first]))
        pool = rows.start + np.flatnonzero(self._prefixes.usable_P[rows])
        return pick(random, pool, self._prefixes.group_size)
