"""The names of start-state samplers: the one place where a sampler is registered. Imports nothing."""

from enum import StrEnum
from typing import Final


class StartStates(StrEnum):
    """What the start states of a group are. UNIFORM, TRACE and ROOT are those of the methods of `treeopo.methods`.

    UNIFORM: prefixes of one problem's tree. TRACE: prefixes of one teacher trace. ROOT: the root, again and again.
    DEPTH: depths uniformly. MIXTURE: as UNIFORM, but a share of the groups at the root. ANNEAL: from deep prefixes to
    the root, as the run goes on. SUCCESS: prefixes that the student solves about half of the time. FRONTIER: of each
    problem the shallowest such prefixes.
    """

    UNIFORM = "uniform"
    TRACE = "trace"
    ROOT = "root"
    DEPTH = "depth"
    MIXTURE = "mixture"
    ANNEAL = "anneal"
    SUCCESS = "success"
    FRONTIER = "frontier"


SAMPLERS: Final = {
    str(StartStates.UNIFORM): "treeopo.rollout.sampling.prefixes:UniformPrefixes",
    str(StartStates.TRACE): "treeopo.rollout.sampling.traces:TracePrefixes",
    str(StartStates.ROOT): "treeopo.rollout.sampling.roots:Roots",
    str(StartStates.DEPTH): "treeopo.rollout.sampling.depths:UniformDepths",
    str(StartStates.MIXTURE): "treeopo.rollout.sampling.mixture:RootsAndPrefixes",
    str(StartStates.ANNEAL): "treeopo.rollout.sampling.anneal:DeepToRoot",
    str(StartStates.SUCCESS): "treeopo.rollout.sampling.success:HalfSolved",
    str(StartStates.FRONTIER): "treeopo.rollout.sampling.frontier:Frontier",
}
"""Name to class, `Sampler(prefixes)`; `rollout.sampling` also takes `package.module:Name` of one that is not here."""

ASK_THE_MEMORY: Final = frozenset({StartStates.SUCCESS, StartStates.FRONTIER})
"""Those that need the student's outcomes, so its rollouts."""
