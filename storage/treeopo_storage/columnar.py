"""The reader and the writer over any place that keeps columns; an adapter supplies only the place."""

from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

from treeopo_storage.errors import TreeDataError, WriterClosedError
from treeopo_storage.invariants import Violation, find_violation
from treeopo_storage.packing import pack, read_block, read_ends, rebase, strings_of, unpack
from treeopo_storage.protocol import Structure
from treeopo_storage.schema import COLUMNS, Array, Columns, Counts, ProblemTree, StoreMeta, gather_prefix


class ColumnSource(Protocol):
    """Where columns are read from."""

    @property
    def meta(self) -> StoreMeta: ...

    def committed(self) -> Counts:
        """Rows of each axis in the newest commit; looks again on every call."""
        ...

    def read(self, column: str, start: int, stop: int) -> Array:
        """Rows [start, stop) of a column, all of them committed."""
        ...


class ColumnSink(ColumnSource, Protocol):
    """Where columns are written to, under `meta`, which the next commit records."""

    meta: StoreMeta

    def commit(self, columns: Columns, counts: Counts) -> None:
        """Add rows (ends counted from the start of the store); `counts` are the rows of each axis afterwards."""
        ...

    def close(self) -> None: ...


class _Slice(NamedTuple):
    """What prefixes of one problem are gathered from."""

    problem: int
    parent: npt.NDArray[np.int32]
    token_offsets: npt.NDArray[np.int64]
    token_ids: npt.NDArray[np.int32]


class ColumnarStore:
    """A `TreeStore` over a `ColumnSource`. Holds the last problem read for prefixes and nothing else of size."""

    def __init__(self, source: ColumnSource) -> None:
        self._source = source
        self._counts = source.committed()
        self._structure = self._new_structure()
        self._last: _Slice | None = None

    @property
    def meta(self) -> StoreMeta:
        return self._source.meta

    @property
    def problem_count(self) -> int:
        return self._counts["problem"]

    @property
    def node_count(self) -> int:
        return self._counts["node"]

    @property
    def token_count(self) -> int:
        return self._counts["token"]

    def refresh(self) -> bool:
        counts = self._source.committed()
        if counts == self._counts:
            return False
        self._counts = counts
        self._structure = self._new_structure()
        return True

    def structure(self) -> Structure:
        return self._structure

    def problem(self, problem: int) -> ProblemTree:
        self._check(problem)
        return unpack(read_block(self._source.read, problem, problem + 1))[0]

    def problems(self, start: int, stop: int) -> list[ProblemTree]:
        if not 0 <= start <= stop <= self.problem_count:
            raise IndexError(f"problems [{start}, {stop}) are not within this store's {self.problem_count}")
        return unpack(read_block(self._source.read, start, stop)) if start < stop else []

    def problem_id(self, problem: int) -> str:
        self._check(problem)
        return strings_of(self._source.read, "problems/id", problem, problem + 1)[0]

    def problem_ids(self) -> list[str]:
        return strings_of(self._source.read, "problems/id", 0, self.problem_count)

    def answers(self) -> list[str]:
        return strings_of(self._source.read, "problems/answer", 0, self.problem_count)

    def prefix_tokens(self, problem: int, node: int) -> npt.NDArray[np.int32]:
        # A local name: another thread may replace the remembered problem at any moment.
        last = self._last
        if last is None or last.problem != problem:
            last = self._last = self._slice(problem)
        return gather_prefix(last.parent, last.token_offsets, last.token_ids, node)

    def prefix_lengths(self, problem: int) -> npt.NDArray[np.int64]:
        parent, token_offsets, _ = self._topology(problem)
        lengths = np.diff(token_offsets)
        for node in range(1, len(lengths)):
            lengths[node] += lengths[parent[node]]
        return lengths

    def _slice(self, problem: int) -> _Slice:
        parent, token_offsets, first_token = self._topology(problem)
        ids = self._source.read("tokens/id", first_token, first_token + int(token_offsets[-1]))
        return _Slice(problem, parent, token_offsets, ids.astype(np.int32, copy=False))

    def _topology(self, problem: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], int]:
        """A problem's parent (P,), token offsets (P+1,) and first token in the store."""
        self._check(problem)
        _, (lo, hi) = read_ends(self._source.read, "problems/node_end", problem, problem + 1)
        ends, (first_token, _) = read_ends(self._source.read, "nodes/token_end", lo, hi)
        parent = self._source.read("nodes/parent", lo, hi).astype(np.int32, copy=False)
        return parent, np.concatenate([[0], ends]), first_token

    def _new_structure(self) -> Structure:
        counts = self._counts
        return Structure(lambda column: self._source.read(column, 0, counts[COLUMNS[column].axis]))

    def _check(self, problem: int) -> None:
        if not 0 <= problem < self.problem_count:
            raise IndexError(f"problem {problem} is not one of this store's {self.problem_count}")


class ColumnarWriter:
    """A `TreeWriter` over a `ColumnSink`."""

    def __init__(self, sink: ColumnSink) -> None:
        self._sink = sink
        self._counts = sink.committed()
        self._ids = set(strings_of(sink.read, "problems/id", 0, self._counts["problem"]))
        self._unusable = ""

    @property
    def meta(self) -> StoreMeta:
        return self._sink.meta

    @property
    def problem_count(self) -> int:
        return self._counts["problem"]

    def problem_ids(self) -> set[str]:
        return set(self._ids)

    def widen(self, vocabulary_size: int) -> None:
        """Take token ids up to a larger vocabulary from now on; the next append records it."""
        known = self.meta.vocabulary_size
        if known is not None and vocabulary_size > known:
            self._sink.meta = replace(self.meta, vocabulary_size=vocabulary_size)

    def append(self, trees: Sequence[ProblemTree]) -> None:
        if self._unusable:
            raise WriterClosedError(f"this writer {self._unusable}; open a new one to continue")
        if not trees:
            return
        self._refuse_repeated_ids(trees)
        columns = pack(trees)
        if violation := find_violation(columns, self.meta.vocabulary_size):
            raise TreeDataError(_locate(violation, trees, columns))
        counts = {axis: have + _rows(columns, axis) for axis, have in self._counts.items()}
        # Set before the write and lifted after it, so that no interruption whatever leaves a writer that goes on.
        self._unusable = "failed in an earlier append"
        self._sink.commit(rebase(columns, self._counts), counts)
        self._unusable = ""
        self._counts = counts
        self._ids.update(tree.id for tree in trees)

    def close(self) -> None:
        if self._unusable != "is closed":
            self._unusable = "is closed"
            self._sink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _refuse_repeated_ids(self, trees: Sequence[ProblemTree]) -> None:
        seen: set[str] = set()
        for tree in trees:
            if tree.id in self._ids or tree.id in seen:
                raise TreeDataError(f"problem {tree.id!r} is already in the store; a problem is stored once")
            seen.add(tree.id)


def _rows(columns: Columns, axis: str) -> int:
    return next(len(columns[name]) for name, column in COLUMNS.items() if column.axis == axis)


def _locate(violation: Violation, trees: Sequence[ProblemTree], columns: Columns) -> str:
    """The violation in the caller's words: which problem, which of its nodes or tokens."""
    column, row, reason = violation
    ends = {"node": columns["problems/node_end"], "token": _token_ends(columns)}.get(COLUMNS[column].axis)
    if ends is None:
        return f"{column} row {row}: {reason}"
    problem = int(np.searchsorted(ends, row, side="right"))
    local = row - (int(ends[problem - 1]) if problem else 0)
    return f"problem {trees[problem].id!r}: {column} of {COLUMNS[column].axis} {local}: {reason}"


def _token_ends(columns: Columns) -> Array:
    token_end = columns["nodes/token_end"]
    return token_end[columns["problems/node_end"].astype(np.int64) - 1]
