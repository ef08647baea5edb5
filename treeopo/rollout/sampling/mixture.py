"""A share of the groups at the root, the others wherever another sampler starts them.

R3 (Xi et al. 2024, arXiv 2402.05808) mixes its start states, the root among them, where others go through them in turn.
"""

from numpy.random import Generator

from treeopo.errors import RunError
from treeopo.rollout.sampling.base import Prefixes, Rows, StartSampler
from treeopo.rollout.sampling.known import Known
from treeopo.rollout.sampling.prefixes import UniformPrefixes
from treeopo.rollout.sampling.roots import Roots


class RootsAnd:
    """Every group starts at the root with probability `share`, and else where `other` has it start.

    Raises:
        RunError: no root is usable.
    """

    def __init__(self, other: StartSampler, prefixes: Prefixes, share: float) -> None:
        self._roots = Roots(prefixes)
        if len(self._roots.candidates) == 0:
            raise RunError("curriculum.root_share: no root is to be started from; raise rollout.max_prompt_tokens")
        self._other = other
        self._share = share
        self.candidates: Rows = other.candidates

    def choose(self, random: Generator, known: Known) -> Rows:
        sampler = self._roots if random.random() < self._share else self._other
        return sampler.choose(random, known)


class RootsAndPrefixes(RootsAnd):
    """Roots, and prefixes uniformly: half and half, unless `curriculum.root_share` says otherwise."""

    def __init__(self, prefixes: Prefixes) -> None:
        share = prefixes.curriculum.root_share
        super().__init__(UniformPrefixes(prefixes), prefixes, 0.5 if share is None else share)
