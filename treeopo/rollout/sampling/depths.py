"""Depths uniformly: cut points of every depth alike, as R3 mixes them (Xi et al. 2024, arXiv 2402.05808)."""

import numpy as np
from numpy.random import Generator

from treeopo.rollout.sampling.base import Prefixes, Rows, pick
from treeopo.rollout.sampling.known import Known


class UniformDepths:
    """N prefixes of one problem, problems uniformly: each depth that the problem has is as likely as another."""

    def __init__(self, prefixes: Prefixes) -> None:
        self._prefixes = prefixes
        self.candidates: Rows = prefixes.problems

    def choose(self, random: Generator, known: Known) -> Rows:
        pool = self._prefixes.usable_rows(int(self.candidates[random.integers(len(self.candidates))]))
        depth = self._prefixes.structure.depth[pool]
        return pick(random, pool, self._prefixes.starts, 1 / np.bincount(depth)[depth])
