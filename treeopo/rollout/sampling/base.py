"""Groups of start states: a pure function of (seed, group number, store); no sampler state.

GroupSampler.draw(number) ─▶ a random stream of (seed, number) ─▶ StartSampler.choose ─▶ prompts of one problem
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from numpy.random import Generator, Philox
from treeopo_storage.protocol import Structure, TreeStore

from treeopo.errors import RunError
from treeopo.plugins import find
from treeopo.records import Prompt, PromptGroup
from treeopo.rollout.sampling.names import SAMPLERS
from treeopo.rollout.settings import RolloutSettings


@dataclass(frozen=True, slots=True)
class Prefixes:
    """The P prefixes of a store, problem after problem, as `structure` has them. usable_P: those that a group may start
    from: unfinished, and no longer than `max_prompt_tokens`. group_size: N, start states of a group.
    """

    structure: Structure
    usable_P: npt.NDArray[np.bool_]
    group_size: int

    def rows(self, problem: int) -> slice:
        """Where the problem's prefixes stand, its root first."""
        first_node = self.structure.first_node
        return slice(int(first_node[problem]), int(first_node[problem + 1]))


class StartSampler(Protocol):
    """Chooses the start states of one group. Registered in `treeopo.rollout.sampling.names`, made as `Name(prefixes)`.

    candidates (K,) is what one draw is made among; a store that has none for it cannot be trained on.
    """

    @property
    def candidates(self) -> npt.NDArray[np.int64]: ...

    def choose(self, random: Generator) -> npt.NDArray[np.int64]:
        """Rows (N,) of the start states, usable prefixes of one problem, by `random` alone."""
        ...


MakeSampler = Callable[[Prefixes], StartSampler]


class GroupSampler:
    """Draws groups from a store by the `StartSampler` called `start`. `among` (P,) leaves others than those prefixes
    out; `too_long` counts the unfinished ones left out for their length.

    Raises:
        RunError: the store has no usable prefix. ConfigError: there is no such sampler.
    """

    def __init__(
        self,
        store: TreeStore,
        settings: RolloutSettings,
        seed: int,
        start: str,
        among: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        make: MakeSampler = find(start, SAMPLERS, "rollout.sampling")
        structure = store.structure()
        fits = structure.prefix_lengths <= settings.max_prompt_tokens
        unfinished = ~structure.terminal if among is None else among & ~structure.terminal
        self.too_long = int(np.count_nonzero(~fits & unfinished))
        self._store = store
        self._seed = seed
        self._prefixes = Prefixes(structure, fits & unfinished, settings.group_size)
        self._sampler = make(self._prefixes)
        if len(self._sampler.candidates) == 0:
            raise RunError(
                f"the store has no prefix to start from ({self.too_long} are longer than "
                f"{settings.max_prompt_tokens} tokens, the others are finished); raise rollout.max_prompt_tokens"
            )

    @property
    def usable_count(self) -> int:
        return int(np.count_nonzero(self._prefixes.usable_P))

    def draw(self, number: int) -> PromptGroup:
        """Group `number`; drawing it again, in any order and any process, gives the same group."""
        random = Generator(Philox(key=np.array([self._seed, number], dtype=np.uint64)))
        chosen_N = self._sampler.choose(random)
        problem = int(self._prefixes.structure.problem[chosen_N[0]])
        rows = self._prefixes.rows(problem)
        return PromptGroup(
            number=number,
            problem=problem,
            parent=np.asarray(self._prefixes.structure.parent[rows], dtype=np.int32),
            prompts=tuple(
                Prompt(node, self._store.prefix_tokens(problem, node)) for node in (chosen_N - rows.start).tolist()
            ),
        )


def pick(random: Generator, pool: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    """`size` of the pool's rows, uniformly; with repetition only where the pool has fewer."""
    return random.choice(pool, size=size, replace=len(pool) < size)
