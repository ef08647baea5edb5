"""Which prefixes a group starts from: a pure function of (seed, group number, store); no sampler state (SPEC §2)."""

from enum import StrEnum

import numpy as np
import numpy.typing as npt
from numpy.random import Generator, Philox
from treeopo_storage.protocol import TreeStore

from treeopo.errors import RunError
from treeopo.records import Draw, DrawnGroup
from treeopo.rollout.settings import RolloutSettings


class Start(StrEnum):
    """What the N start nodes of a group are.

    PREFIX: N prefixes of one problem, uniformly; problems by their number of usable prefixes (Tree-OPO).
    TRACE: prefixes of one teacher trace, i.e. one leaf's chain of ancestors (the ablation of Table 1).
    ROOT: N times the root of one problem, problems uniformly (GRPO).
    """

    PREFIX = "prefix"
    TRACE = "trace"
    ROOT = "root"


class GroupSampler:
    """Draws groups from a store. `usable` prefixes are those that can be completed and fit `max_prompt_tokens`, and are
    `among` (P,) where that is given; `too_long` counts those left out for their length.

    Raises:
        RunError: the store has no usable prefix.
    """

    def __init__(
        self,
        store: TreeStore,
        settings: RolloutSettings,
        seed: int,
        start: Start,
        among: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        self._store = store
        self._size = settings.group_size
        self._seed = seed
        self._start = start
        structure = store.structure()
        self._parent = structure.parent
        self._terminal = structure.terminal
        self._problem = structure.problem
        self._first_node = structure.first_node
        fits = structure.prefix_lengths <= settings.max_prompt_tokens
        unfinished = ~structure.terminal if among is None else among & ~structure.terminal
        self._usable = fits & unfinished
        self.too_long = int(np.count_nonzero(~fits & unfinished))
        self._candidates = np.flatnonzero(self._starting_points())
        if len(self._candidates) == 0:
            raise RunError(
                f"the store has no prefix to start from ({self.too_long} are longer than "
                f"{settings.max_prompt_tokens} tokens, the others are finished); raise rollout.max_prompt_tokens"
            )

    @property
    def usable_count(self) -> int:
        return int(np.count_nonzero(self._usable))

    def draw(self, number: int) -> DrawnGroup:
        """Group `number`; drawing it again, in any order and any process, gives the same group."""
        random = Generator(Philox(key=np.array([self._seed, number], dtype=np.uint64)))
        first = int(self._candidates[random.integers(len(self._candidates))])
        problem = int(self._problem[first])
        begin, end = int(self._first_node[problem]), int(self._first_node[problem + 1])
        pool = self._pool(first, begin, end)
        nodes = random.choice(pool, size=self._size, replace=len(pool) < self._size) - begin
        return DrawnGroup(
            number=number,
            problem=problem,
            parent=np.asarray(self._parent[begin:end], dtype=np.int32),
            draws=tuple(Draw(int(node), self._store.prefix_tokens(problem, int(node))) for node in nodes),
        )

    def _starting_points(self) -> npt.NDArray[np.bool_]:
        """One candidate per unit that a group is drawn by: a prefix, a leaf with a usable root, or a root."""
        if self._start is Start.PREFIX:
            return self._usable
        is_root = self._parent < 0
        if self._start is Start.ROOT:
            return self._usable & is_root
        usable_root = self._usable[self._first_node[:-1]]
        return self._terminal & usable_root[self._problem]

    def _pool(self, first: int, begin: int, end: int) -> npt.NDArray[np.int64]:
        """The nodes that the group's members are drawn from, as indices into the whole store."""
        if self._start is Start.ROOT:
            return np.array([first])
        if self._start is Start.PREFIX:
            return begin + np.flatnonzero(self._usable[begin:end])
        chain = []
        node = int(self._parent[first])
        while node >= 0:
            if self._usable[begin + node]:
                chain.append(begin + node)
            node = int(self._parent[begin + node])
        return np.array(chain[::-1])
