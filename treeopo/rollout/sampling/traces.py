"""Prefixes of one teacher trace: the `trace` structure of Tree-OPO (arXiv 2509.09284) §4.1, Table 1."""

import numpy as np
from numpy.random import Generator

from treeopo.rollout.sampling.base import Prefixes, Rows, pick
from treeopo.rollout.sampling.known import Known


class TracePrefixes:
    """N prefixes of one trace, a finished node's usable ancestors; traces uniformly, where the root is usable."""

    def __init__(self, prefixes: Prefixes) -> None:
        self._prefixes = prefixes
        structure = prefixes.structure
        usable_root = prefixes.usable_P[structure.first_node[:-1]]
        self.candidates: Rows = np.flatnonzero(structure.terminal & usable_root[structure.problem])

    def choose(self, random: Generator, known: Known) -> Rows:
        structure, usable_P = self._prefixes.structure, self._prefixes.usable_P
        leaf = int(self.candidates[random.integers(len(self.candidates))])
        begin = self._prefixes.rows(int(structure.problem[leaf])).start
        chain = []
        node = int(structure.parent[leaf])
        while node >= 0:
            if usable_P[begin + node]:
                chain.append(begin + node)
            node = int(structure.parent[begin + node])
        return pick(random, np.array(chain[::-1]), self._prefixes.starts)
