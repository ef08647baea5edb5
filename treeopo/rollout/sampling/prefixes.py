"""Uniform prefixes (Tree-OPO, arXiv 2509.09284, Alg. 1): a problem by its number of them, then N of its own."""

import numpy as np
from numpy.random import Generator

from treeopo.rollout.sampling.base import Prefixes, Rows, pick
from treeopo.rollout.sampling.known import Known


class UniformPrefixes:
    """N prefixes of one problem, uniformly; the problem is that of a prefix drawn uniformly from the whole store."""

    def __init__(self, prefixes: Prefixes) -> None:
        self._prefixes = prefixes
        self.candidates: Rows = np.flatnonzero(prefixes.usable_P)

    def choose(self, random: Generator, known: Known) -> Rows:
        first = self.candidates[random.integers(len(self.candidates))]
        pool = self._prefixes.usable_rows(int(self._prefixes.structure.problem[first]))
        return pick(random, pool, self._prefixes.starts)
