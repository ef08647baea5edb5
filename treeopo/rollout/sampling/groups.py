"""Groups of start states: a pure function of (seed, group number, store, what the batch may know).

GroupSampler.draw(number, known) ─▶ a random stream of (seed, number) ─▶ StartSampler.choose ─▶ prompts of one problem
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from numpy.random import Generator, Philox
from treeopo_storage.protocol import Structure, TreeStore

from treeopo.errors import RunError
from treeopo.plugins import find
from treeopo.records import Outcomes, Prompt, PromptGroup
from treeopo.rollout.sampling.base import Prefixes, StartSampler
from treeopo.rollout.sampling.known import Known
from treeopo.rollout.sampling.mixture import RootsAnd
from treeopo.rollout.sampling.names import SAMPLERS
from treeopo.rollout.settings import RolloutSettings
from treeopo.tree import subtree_statistics

MakeSampler = Callable[[Prefixes], StartSampler]


class GroupSampler:
    """Draws groups from a store by the `StartSampler` called `start`. `among` (P,) leaves others than those prefixes
    out; `too_long` counts the unfinished ones left out for their length. remembers: groups carry the outcomes known of
    their problem's prefixes.

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
        *,
        remembers: bool = False,
    ) -> None:
        make: MakeSampler = find(start, SAMPLERS, "rollout.sampling")
        self.structure = structure = store.structure()
        fits = structure.prefix_lengths <= settings.max_prompt_tokens
        unfinished = ~structure.terminal if among is None else among & ~structure.terminal
        self.too_long = int(np.count_nonzero(~fits & unfinished))
        self._store = store
        self._seed = seed
        self._remembers = remembers
        self._copies = settings.completions_per_prefix
        self._prefixes = Prefixes(
            structure, fits & unfinished, settings.group_size // self._copies, settings.curriculum
        )
        self._sampler = _with_roots(make(self._prefixes), self._prefixes)
        self._leads_to_success = _solved_below(structure)
        if len(self._sampler.candidates) == 0:
            raise RunError(
                f"the store has no prefix to start from ({self.too_long} are longer than "
                f"{settings.max_prompt_tokens} tokens, the others are finished); raise rollout.max_prompt_tokens"
            )

    @property
    def usable_count(self) -> int:
        return int(np.count_nonzero(self._prefixes.usable_P))

    def draw(self, number: int, known: Known | None = None) -> PromptGroup:
        """Group `number`; drawing it again, in any order and any process, gives the same group.

        known: what its batch may know; None of a sampler that asks for nothing.
        """
        known = known or Known()
        random = Generator(Philox(key=np.array([self._seed, number], dtype=np.uint64)))
        chosen = np.repeat(self._sampler.choose(random, known), self._copies)
        problem = int(self.structure.problem[chosen[0]])
        rows = self._prefixes.rows(problem)
        history = Outcomes(known.outcomes.total[rows], known.outcomes.success[rows]) if self._remembers else None
        prompts = tuple(self._prompt(problem, row, row - rows.start) for row in chosen.tolist())
        return PromptGroup(number, problem, np.asarray(self.structure.parent[rows], np.int32), prompts, history)

    def _prompt(self, problem: int, row: int, node: int) -> Prompt:
        return Prompt(
            node=node,
            token_ids=self._store.prefix_tokens(problem, node),
            depth=int(self.structure.depth[row]),
            question_tokens=int(self.structure.prefix_lengths[row - node]),
            leads_to_success=bool(self._leads_to_success[row]),
        )


def _with_roots(sampler: StartSampler, prefixes: Prefixes) -> StartSampler:
    """`sampler` with the share of groups at the root that was asked for."""
    share = prefixes.curriculum.root_share
    return RootsAnd(sampler, prefixes, share) if share and not isinstance(sampler, RootsAnd) else sampler


def _solved_below(structure: Structure) -> npt.NDArray[np.bool_]:
    """Whether a solved trace passes each prefix (P,)."""
    solved_P = (structure.terminal & (structure.reward == 1)).astype(np.int64)
    return subtree_statistics(structure.parent_row, solved_P, solved_P).exists
