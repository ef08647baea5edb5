"""The root alone: N completions of one question, as GRPO has it (Shao et al. 2024, arXiv 2402.03300)."""

import numpy as np
from numpy.random import Generator

from treeopo.rollout.sampling.base import Prefixes, Rows, pick
from treeopo.rollout.sampling.known import Known


class Roots:
    """N times the root of one problem, problems uniformly."""

    def __init__(self, prefixes: Prefixes) -> None:
        self._prefixes = prefixes
        self.candidates: Rows = prefixes.roots

    def choose(self, random: Generator, known: Known) -> Rows:
        root = self.candidates[random.integers(len(self.candidates))]
        return pick(random, np.array([root]), self._prefixes.starts)
