"""From deep prefixes to the root as the run goes on: the hint lengths of UFT (Liu et al. 2025, arXiv 2505.16984)."""

from math import cos, pi

import numpy as np
from numpy.random import Generator

from treeopo.rollout.sampling.base import Prefixes, Rows, pick
from treeopo.rollout.sampling.known import Known

_LOW, _HIGH = 0.05, 0.95


class DeepToRoot:
    """N prefixes of one problem, problems uniformly, each of a depth drawn from Binomial(D, p): D is the deepest that
    the problem has, and p falls along a cosine from 0.95 to 0.05 until the last `curriculum.anneal_roots` of the run,
    which starts at the root alone.
    """

    def __init__(self, prefixes: Prefixes) -> None:
        self._prefixes = prefixes
        self._until = 1 - prefixes.curriculum.anneal_roots
        self.candidates: Rows = prefixes.problems

    def choose(self, random: Generator, known: Known) -> Rows:
        pool = self._prefixes.usable_rows(int(self.candidates[random.integers(len(self.candidates))]))
        depth = self._prefixes.structure.depth[pool]
        share = _HIGH - (_HIGH - _LOW) * (1 - cos(pi * known.progress / self._until)) / 2
        if known.progress >= self._until:
            share = 0.0
        wanted = random.binomial(int(depth.max()), share, size=self._prefixes.starts)
        # Ancestors are shorter, so a problem with a prefix of depth D has one of every depth below, too.
        chosen = np.empty(self._prefixes.starts, np.int64)
        for each, count in zip(*np.unique(wanted, return_counts=True), strict=True):
            chosen[wanted == each] = pick(random, pool[depth == each], int(count))
        return chosen
