"""The names of start-state samplers: the one place where a sampler is registered. Imports nothing."""

from enum import StrEnum
from typing import Final


class StartStates(StrEnum):
    """What the N start states of a group are, for the methods of `treeopo.methods`.

    UNIFORM: N prefixes of one problem's tree. TRACE: prefixes of one teacher trace. ROOT: N times the root.
    """

    UNIFORM = "uniform"
    TRACE = "trace"
    ROOT = "root"


SAMPLERS: Final = {
    str(StartStates.UNIFORM): "treeopo.rollout.sampling.prefixes:UniformPrefixes",
    str(StartStates.TRACE): "treeopo.rollout.sampling.traces:TracePrefixes",
    str(StartStates.ROOT): "treeopo.rollout.sampling.roots:Roots",
}
"""Name to class, `Sampler(prefixes)`; `rollout.sampling` also takes `package.module:Name` of one that is not here."""
