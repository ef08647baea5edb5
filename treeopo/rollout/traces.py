"""The finished traces that a store keeps, one per terminal node."""

import numpy as np
from treeopo_storage.protocol import TreeStore
from treeopo_storage.schema import ProblemTree

from treeopo.errors import RunError
from treeopo.rollout.settings import RolloutSettings


class Traces:
    """Traces whose prompt and whole text fit; the others are counted in `too_long`, never cut.

    Raises:
        RunError: no trace is left; with `solved_only`, none that is right.
    """

    def __init__(self, store: TreeStore, settings: RolloutSettings, *, solved_only: bool) -> None:
        self._store = store
        structure = store.structure()
        self._problem = structure.problem
        self._first_node = structure.first_node
        wanted = structure.terminal & (structure.reward == 1) if solved_only else structure.terminal
        prompt = structure.prefix_lengths[self._first_node[:-1]][self._problem]
        fits = (structure.prefix_lengths < settings.max_sequence_tokens) & (prompt <= settings.max_prompt_tokens)
        self._rows = np.flatnonzero(wanted & fits)
        self.too_long = int(np.count_nonzero(wanted & ~fits))
        if len(self._rows) == 0:
            kind = "solved trace" if solved_only else "trace"
            raise RunError(
                f"the store has no {kind} to learn from ({self.too_long} are too long); build it with a stronger "
                "teacher, or raise rollout.max_prompt_tokens and rollout.max_sequence_tokens"
            )

    def __len__(self) -> int:
        return len(self._rows)

    def trace(self, index: int) -> tuple[ProblemTree, list[int]]:
        """Trace `index`: its tree, and its nodes from the root to the terminal one."""
        row = int(self._rows[index])
        problem = int(self._problem[row])
        tree = self._store.problem(problem)
        return tree, tree.path(row - int(self._first_node[problem]))
