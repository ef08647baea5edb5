"""The frontier of each problem: the shallowest prefixes that the student solves now and then.

AdaBack (arXiv 2506.18110) holds an interval of prefix lengths for each problem and moves it by the group's mean reward;
here the estimated success of every prefix says where that interval is, so a problem's frontier also moves by what was
seen at other problems. Of a solved problem, wrong turns: prefixes that failed (Failure-prefix, arXiv 2601.20829).
"""

import numpy as np
import numpy.typing as npt
from numpy.random import Generator

from treeopo.rollout.sampling.base import Prefixes, Rows, pick
from treeopo.rollout.sampling.known import Known

Mask = npt.NDArray[np.bool_]


class Frontier:
    """N prefixes of one problem, problems uniformly; the band is `curriculum.frontier_low` to `frontier_high`.

    the problem's root     groups start at
    above the band         prefixes within the band, or else those below it, or else the root
    elsewhere              the shallowest prefixes within the band, or else the shallowest above it, or else the deepest
    """

    def __init__(self, prefixes: Prefixes) -> None:
        self._prefixes = prefixes
        self._low, self._high = prefixes.curriculum.frontier_low, prefixes.curriculum.frontier_high
        self.candidates: Rows = prefixes.problems

    def choose(self, random: Generator, known: Known) -> Rows:
        pool = self._prefixes.usable_rows(int(self.candidates[random.integers(len(self.candidates))]))
        frontier = self._frontier(self._prefixes.structure.depth[pool], known.success[pool])
        return pick(random, pool[frontier], self._prefixes.starts)

    def _frontier(self, depth_K: npt.NDArray[np.int32], success_K: npt.NDArray[np.float64]) -> Mask:
        """Which of a problem's K prefixes, the root first, are its frontier."""
        below_K, above_K = success_K < self._low, success_K > self._high
        within_K = ~(below_K | above_K)
        if above_K[0]:
            return _first_that_has_some(within_K, below_K, depth_K == 0)
        reached_K = _first_that_has_some(within_K, above_K, depth_K == depth_K.max())
        shallowest: Mask = reached_K & (depth_K == depth_K[reached_K].min())
        return shallowest


def _first_that_has_some(*masks: Mask) -> Mask:
    return next(mask for mask in masks if mask.any())
