"""Every rule that committed columns obey; `append` checks them before writing, `verify` after reading."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from treeopo_storage.schema import COLUMNS, NO_PARENT, Action, Array, Columns

LOGPROB_SLACK = 1e-3  # a log-probability may exceed 0 by rounding alone


class Violation(NamedTuple):
    """The first row of `column` (counted from the block's start) that breaks a rule."""

    column: str
    row: int
    reason: str


def find_violation(columns: Columns, vocabulary_size: int | None = None) -> Violation | None:
    """The first broken rule of a block of whole problems (ends counted from its start), or None."""
    # Each stage may rely on the ones before it: indices are checked before they are used.
    stages = (_ends(columns), _topology(columns), _statistics(columns), _tokens(columns, vocabulary_size))
    return next((violation for stage in stages for violation in stage), None)


def _ends(columns: Columns) -> Iterator[Violation]:
    for name, column in COLUMNS.items():
        if column.ends is None:
            continue
        sizes = np.diff(columns[name], prepend=0)
        yield from _first(name, sizes < 0, "ends before the previous row")
        if column.ends == "node":
            yield from _first(name, sizes == 0, "a problem without nodes")
        total = int(columns[name][-1]) if len(columns[name]) else 0
        for other, rows in columns.items():
            if COLUMNS[other].axis == column.ends and len(rows) != total:
                yield Violation(other, min(len(rows), total), f"has {len(rows)} rows where {name} says {total}")
    yield from _characters(columns)


def _characters(columns: Columns) -> Iterator[Violation]:
    for name, column in COLUMNS.items():
        if column.ends is None or not COLUMNS[text := _text_column(name)].is_text:
            continue
        utf8 = columns[text]
        try:
            utf8.tobytes().decode()
        except UnicodeDecodeError as error:
            yield Violation(text, error.start, "is not UTF-8")
        starts = columns[name][:-1]
        inside = starts[starts < len(utf8)]
        yield from _first(name, (utf8[inside] & 0xC0) == 0x80, "ends inside a character")


def _text_column(ends: str) -> str:
    return next(name for name, column in COLUMNS.items() if column.axis == COLUMNS[ends].ends)


def _topology(columns: Columns) -> Iterator[Violation]:
    parent, depth = columns["nodes/parent"], columns["nodes/depth"]
    local, up = _local_and_parent_rows(columns)
    root = local == 0
    yield from _first(
        "nodes/parent", root & (parent != NO_PARENT), "a problem's first node must be its root, parent -1"
    )
    yield from _first("nodes/parent", ~root & ((parent < 0) | (parent >= local)), "a parent must come before its child")
    yield from _first("nodes/depth", root & (depth != 0), "a root's depth is 0")
    yield from _first("nodes/depth", ~root & (depth != depth[up] + 1), "depth is the parent's plus one")
    yield from _first(
        "nodes/terminal", columns["nodes/terminal"] & _has_child(root, up), "a terminal node has no children"
    )
    action = columns["nodes/action"]
    yield from _first("nodes/action", root != (action == Action.ROOT), "ROOT is the action of the root alone")
    yield from _first("nodes/action", (action < min(Action)) | (action > max(Action)), "is not a known action")


def _statistics(columns: Columns) -> Iterator[Violation]:
    visits, terminal, reward = columns["nodes/visits"], columns["nodes/terminal"], columns["nodes/reward"]
    local, up = _local_and_parent_rows(columns)
    child = local > 0
    through_children = np.bincount(up[child], weights=visits[child], minlength=len(up))
    yield from _first("nodes/visits", visits < 0, "is negative")
    yield from _first("nodes/visits", visits < through_children, "a node's visits are at least its children's together")
    yield from _first("nodes/value_sum", ~np.isfinite(columns["nodes/value_sum"]), "is not finite")
    yield from _first("nodes/reward", terminal & ~np.isfinite(reward), "a terminal node needs a finite reward")
    yield from _first("nodes/reward", ~terminal & ~np.isnan(reward), "must be NaN where the node is not terminal")


def _tokens(columns: Columns, vocabulary_size: int | None) -> Iterator[Violation]:
    lengths = np.diff(columns["nodes/token_end"], prepend=0)
    local, _ = _local_and_parent_rows(columns)
    yield from _first("nodes/token_end", (local == 0) & (lengths == 0), "a root needs at least one prompt token")
    ids, logprob = columns["tokens/id"], columns["tokens/teacher_logprob"]
    yield from _first("tokens/id", ids < 0, "a token id is negative")
    if vocabulary_size is not None:
        beyond = f"a token id is beyond the vocabulary of {vocabulary_size}"
        yield from _first("tokens/id", ids >= vocabulary_size, beyond)
    yield from _first("tokens/teacher_logprob", np.isinf(logprob), "is infinite")
    yield from _first("tokens/teacher_logprob", logprob > LOGPROB_SLACK, "a log-probability cannot be positive")


def _local_and_parent_rows(columns: Columns) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Per node (P,): its index inside its problem, and the row of its parent (its own at a root)."""
    node_end = columns["problems/node_end"].astype(np.int64)
    first_of_node = np.repeat(np.concatenate([[0], node_end[:-1]]), np.diff(node_end, prepend=0))
    rows = np.arange(len(first_of_node))
    local = rows - first_of_node
    # A parent that breaks the rules is reported by _topology; here it must only not index outside the block.
    up = first_of_node + np.clip(columns["nodes/parent"], 0, local)
    return local, np.where(local == 0, rows, up)


def _has_child(root: npt.NDArray[np.bool_], up: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    has_child = np.zeros(len(up), np.bool_)
    has_child[up[~root]] = True
    return has_child


def _first(column: str, broken: Array, reason: str) -> Iterator[Violation]:
    if broken.any():
        yield Violation(column, int(broken.argmax()), reason)
