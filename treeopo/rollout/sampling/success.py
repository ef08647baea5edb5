"""Prefixes that the student solves about half of the time.

A group of prefixes with success v has a signal in proportion to v (1 - v), which bounds what a step can gain (SEELE, Li
et al. 2025, arXiv 2509.06923); AdaPrefix (arXiv 2607.07674) holds each problem at one half.
"""

import numpy as np
from numpy.random import Generator

from treeopo.rollout.sampling.base import Prefixes, Rows, pick
from treeopo.rollout.sampling.known import Known


class HalfSolved:
    """N prefixes of one problem, each with weight v (1 - v) + `curriculum.success_floor`, v the student's estimated
    success; the problem is that of a prefix drawn from the whole store by the same weights.
    """

    def __init__(self, prefixes: Prefixes) -> None:
        self._prefixes = prefixes
        self._floor = prefixes.curriculum.success_floor
        self.candidates: Rows = np.flatnonzero(prefixes.usable_P)

    def choose(self, random: Generator, known: Known) -> Rows:
        weight_P = known.success * (1 - known.success) + self._floor
        upto_K = np.cumsum(weight_P[self.candidates])
        first = self.candidates[np.searchsorted(upto_K, random.random() * upto_K[-1], side="right")]
        pool = self._prefixes.usable_rows(int(self._prefixes.structure.problem[first]))
        return pick(random, pool, self._prefixes.starts, weight_P[pool])
