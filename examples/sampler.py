"""Start states of your own: the deepest unfinished prefixes of a problem.

treeopo train trees.zarr --set rollout.sampling=examples.sampler:Deepest
"""

import numpy as np
from numpy.random import Generator

from treeopo.rollout.sampling.base import Prefixes, Rows, pick
from treeopo.rollout.sampling.known import Known


class Deepest:
    def __init__(self, prefixes: Prefixes) -> None:
        self.prefixes = prefixes
        self.candidates: Rows = np.flatnonzero(prefixes.usable_P)

    def choose(self, random: Generator, known: Known) -> Rows:
        first = self.candidates[random.integers(len(self.candidates))]
        usable = self.prefixes.usable_rows(int(self.prefixes.structure.problem[first]))
        depth = self.prefixes.structure.depth[usable]
        return pick(random, usable[depth == depth.max()], self.prefixes.starts)
