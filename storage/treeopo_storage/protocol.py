"""What every tree store promises, whatever it is kept in. `treeopo_storage.conformance` proves an adapter keeps it."""

from collections.abc import Callable, Sequence
from functools import cached_property
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from treeopo_storage.schema import NO_PARENT, Array, ProblemTree, StoreMeta


class Structure:
    """Whole-store arrays of one snapshot, P nodes of n problems; each is read on first use and kept.

    Problem i owns nodes [first_node[i], first_node[i + 1]), and node p's step is tokens
    [token_offsets[p], token_offsets[p + 1]).
    """

    def __init__(self, read: Callable[[str], Array]) -> None:
        self._read = read

    @cached_property
    def first_node(self) -> npt.NDArray[np.int64]:
        """(n+1,) row of each problem's root, then the number of nodes."""
        return np.concatenate([[0], self._read("problems/node_end")]).astype(np.int64, copy=False)

    @cached_property
    def token_offsets(self) -> npt.NDArray[np.int64]:
        """(P+1,) first token of each node's step, then the number of tokens."""
        return np.concatenate([[0], self._read("nodes/token_end")]).astype(np.int64, copy=False)

    @cached_property
    def problem(self) -> npt.NDArray[np.int32]:
        """(P,) the problem of each node."""
        return np.repeat(np.arange(len(self.first_node) - 1, dtype=np.int32), np.diff(self.first_node))

    @cached_property
    def parent(self) -> npt.NDArray[np.int32]:
        """(P,) parent's index inside the problem, NO_PARENT at roots."""
        return self._read("nodes/parent").astype(np.int32, copy=False)

    @cached_property
    def parent_row(self) -> npt.NDArray[np.int64]:
        """(P,) parent's row, NO_PARENT at roots."""
        return np.where(self.parent < 0, np.int64(NO_PARENT), self.first_node[self.problem] + self.parent)

    @cached_property
    def depth(self) -> npt.NDArray[np.int32]:
        """(P,) steps after the prompt."""
        return self._read("nodes/depth").astype(np.int32, copy=False)

    @cached_property
    def visits(self) -> npt.NDArray[np.int32]:
        """(P,) rollouts through the node."""
        return self._read("nodes/visits").astype(np.int32, copy=False)

    @cached_property
    def value_sum(self) -> npt.NDArray[np.float64]:
        """(P,) sum of the returns of those rollouts."""
        return self._read("nodes/value_sum").astype(np.float64, copy=False)

    @cached_property
    def terminal(self) -> npt.NDArray[np.bool_]:
        """(P,) the node ends a solution."""
        return self._read("nodes/terminal").astype(np.bool_, copy=False)

    @cached_property
    def reward(self) -> npt.NDArray[np.float32]:
        """(P,) reward of terminal nodes, NaN elsewhere."""
        return self._read("nodes/reward").astype(np.float32, copy=False)

    @cached_property
    def action(self) -> npt.NDArray[np.int8]:
        """(P,) values of `Action`."""
        return self._read("nodes/action").astype(np.int8, copy=False)

    @cached_property
    def prefix_lengths(self) -> npt.NDArray[np.int64]:
        """(P,) tokens of each prefix (the path root→node), computed from the offsets alone."""
        lengths = np.diff(self.token_offsets)
        for depth in range(1, int(self.depth.max(initial=0)) + 1):
            nodes = np.flatnonzero(self.depth == depth)
            lengths[nodes] += lengths[self.parent_row[nodes]]
        return lengths


class TreeStore(Protocol):
    """A reader: one consistent snapshot of a store, taken when it was opened or last refreshed.

    - Only whole, committed problems are visible; a writer appending meanwhile changes nothing until `refresh`.
    - Problem i stays problem i for ever: stores only grow.
    - Methods may be called from several threads. An index outside the snapshot raises `IndexError`.
    - Bytes that are missing or not those committed raise `DamagedStoreError`, never wrong data.
    """

    @property
    def meta(self) -> StoreMeta: ...

    @property
    def problem_count(self) -> int: ...

    @property
    def node_count(self) -> int: ...

    @property
    def token_count(self) -> int: ...

    def refresh(self) -> bool:
        """Move to the newest commit; True if anything was added."""
        ...

    def structure(self) -> Structure:
        """The snapshot's whole arrays, loaded lazily; the same object until `refresh` finds something new."""
        ...

    def problem(self, problem: int) -> ProblemTree: ...

    def problems(self, start: int, stop: int) -> list[ProblemTree]:
        """Problems [start, stop), read as one block."""
        ...

    def problem_id(self, problem: int) -> str: ...

    def problem_ids(self) -> list[str]: ...

    def answers(self) -> list[str]:
        """The gold answer of every problem."""
        ...

    def prefix_tokens(self, problem: int, node: int) -> npt.NDArray[np.int32]:
        """Tokens (T,) of the path root→node. Reads one problem; its neighbours in a group cost no further read."""
        ...

    def prefix_lengths(self, problem: int) -> npt.NDArray[np.int64]:
        """Tokens of each of the problem's prefixes (P,), without reading any token."""
        ...


class TreeWriter(Protocol):
    """The one writer of a store; a context manager that closes itself.

    - `append` is atomic: all its trees are committed when it returns, none if it raises or the process dies.
    - Trees that break a rule (`treeopo_storage.invariants`) or repeat a problem id raise `TreeDataError`; nothing is
      written and the writer goes on.
    - After a failed write it refuses to go on (`WriterClosedError`); a new one continues from the last commit.
    """

    @property
    def meta(self) -> StoreMeta: ...

    @property
    def problem_count(self) -> int: ...

    def problem_ids(self) -> set[str]:
        """The committed ids: what a resumed search need not do again."""
        ...

    def append(self, trees: Sequence[ProblemTree]) -> None: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
