"""The root alone: N completions of one question, as GRPO has it (Shao et al. 2024, arXiv 2402.03300)."""

import numpy as np
import numpy.typing as npt
from numpy.random import Generator

from treeopo.rollout.sampling.base import Prefixes, pick


class Roots:
    """N times the root of one problem, problems uniformly."""

    def __init__(self, prefixes: Prefixes) -> None:
        self._prefixes = prefixes
        self.candidates: npt.NDArray[np.int64] = np.flatnonzero(prefixes.usable_P & (prefixes.structure.parent < 0))

    def choose(self, random: Generator) -> npt.NDArray[np.int64]:
        root = self.candidates[random.integers(len(self.candidates))]
        return pick(random, np.array([root]), self._prefixes.group_size)
