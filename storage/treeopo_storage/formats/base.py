"""What a format of trace files is: how its files become traces, and what they say of rewards."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from treeopo_storage.cells import ABSENT, cell, shown, text_of, text_or_number
from treeopo_storage.errors import TreeDataError
from treeopo_storage.shards import rows_of
from treeopo_storage.traces import Trace

Reward = Literal["recorded", "graded"]
"""Where the reward of a trace comes from: its file, or a grader that compares its end with the gold answer."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A solution that is no trace, and why, in words that go on from a number (3 "without an answer at the end")."""

    why: str


class RowError(TreeDataError):
    """A row is not what its format says; `row` is it."""

    def __init__(self, where: str, reason: object, row: Any) -> None:
        super().__init__(f"{where}: {reason}")
        self.row = row


Found = tuple[str, Trace | LeftOut]
"""The words that name a solution in a complaint, and what came of it."""


@dataclass(frozen=True, slots=True)
class Format:
    """A layout of files. `title`: what it is called. `rewards`: where its rewards may come from, the default first.
    `fits` tells its rows by their columns. `files`: those of a directory that hold traces.

    `read` yields the traces of files, with no reward where none is recorded. It raises `RowError`, naming the row.
    """

    name: str
    title: str
    rewards: tuple[Reward, ...]
    fits: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Iterable[Path]], Iterator[Found]]
    files: str = "*"


def by_row(traces: Callable[[Any, str], Iterable[Trace | LeftOut]]) -> Callable[[Iterable[Path]], Iterator[Found]]:
    """`Format.read` of files whose rows stand alone; `traces` raises `ValueError` in words that say what is wrong."""

    def read(paths: Iterable[Path]) -> Iterator[Found]:
        for where, row in rows_of(paths):
            for found in in_row(row, where, traces):
                yield where, found

    return read


def in_row(row: Any, where: str, traces: Callable[[Any, str], Iterable[Trace | LeftOut]]) -> Iterator[Trace | LeftOut]:
    """What `traces` makes of a row, its complaints as a `RowError`."""
    try:
        yield from traces(row, where)
    except ValueError as error:
        raise RowError(where, error, row) from None


def field(row: Any, column: str, says: Callable[[Any], Any] = text_of) -> Any:
    """What a column that a row must have says.

    Raises:
        ValueError: it is missing, or says something else.
    """
    value = cell(row, column)
    if value is ABSENT:
        kind = "" if isinstance(row, Mapping) else f": the row is {shown(row)}, no object"
        raise ValueError(f"{column!r} is missing{kind}")
    try:
        return says(value)
    except ValueError as error:
        raise ValueError(f"{column!r} {error}") from None


def optional(row: Any, column: str) -> str | None:
    """The text or number of a column that a row need not have; null counts as absent, as in Parquet."""
    return None if cell(row, column) in (ABSENT, None) else field(row, column, text_or_number)
