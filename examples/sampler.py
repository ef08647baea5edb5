"""Start states of your own: the deepest unfinished prefixes of a problem.

treeopo train trees.zarr --set rollout.sampling=examples.sampler:Deepest
"""

import numpy as np
import numpy.typing as npt
from numpy.random import Generator

from treeopo.rollout.sampling.base import Prefixes, pick


class Deepest:
    def __init__(self, prefixes: Prefixes) -> None:
        self.prefixes = prefixes
        self.candidates: npt.NDArray[np.int64] = np.flatnonzero(prefixes.usable_P)

    def choose(self, random: Generator) -> npt.NDArray[np.int64]:
        first = self.candidates[random.integers(len(self.candidates))]
        rows = self.prefixes.rows(int(self.prefixes.structure.problem[first]))
        usable = rows.start + np.flatnonzero(self.prefixes.usable_P[rows])
        depth = self.prefixes.structure.depth[usable]
        return pick(random, usable[depth == depth.max()], self.prefixes.group_size)
