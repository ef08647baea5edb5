"""Trees to columns and back: many problems side by side, with ends counted from the start of the block."""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from treeopo_storage.errors import TreeDataError
from treeopo_storage.schema import COLUMNS, Array, Columns, Counts, ProblemTree

Ends = npt.NDArray[np.int64]
# Tree field -> column, for the fields that are arrays over nodes or tokens.
_NODE_FIELDS = ("parent", "depth", "visits", "value_sum", "terminal", "reward", "action")
_FIELD_COLUMNS = {field: f"nodes/{field}" for field in _NODE_FIELDS} | {
    "token_ids": "tokens/id",
    "teacher_logprobs": "tokens/teacher_logprob",
}


def pack(trees: Sequence[ProblemTree]) -> dict[str, Array]:
    """Columns of `trees` (at least one); `TreeDataError` if a tree's arrays do not fit each other or the schema."""
    for tree in trees:
        _check_shapes(tree)
    columns: dict[str, Array] = {
        column: np.concatenate([getattr(tree, field) for tree in trees]) for field, column in _FIELD_COLUMNS.items()
    }
    columns["problems/node_end"] = _ends(tree.node_count for tree in trees)
    columns["nodes/token_end"] = np.cumsum(np.concatenate([np.diff(tree.token_offsets) for tree in trees]))
    for column, strings in (
        ("problems/id", [tree.id for tree in trees]),
        ("problems/question", [tree.question for tree in trees]),
        ("problems/answer", [tree.answer for tree in trees]),
        ("text/step", [text for tree in trees for text in tree.texts]),
    ):
        end = "nodes/text_end" if column == "text/step" else f"{column}_end"
        columns[column], columns[end] = _encode(column, strings)
    return columns


def unpack(columns: Columns) -> list[ProblemTree]:
    """The trees of a block of columns; their arrays are views into it."""
    ids, questions, answers = (
        _decode(columns[f"problems/{name}"], columns[f"problems/{name}_end"]) for name in ("id", "question", "answer")
    )
    texts = _decode(columns["text/step"], columns["nodes/text_end"])
    token_offsets = np.concatenate([[0], columns["nodes/token_end"]])
    node_spans = _spans(columns["problems/node_end"])
    token_spans = _spans(token_offsets[columns["problems/node_end"]])
    return [
        ProblemTree(
            ids[i],
            questions[i],
            answers[i],
            **{field: columns[f"nodes/{field}"][lo:hi] for field in _NODE_FIELDS},
            token_ids=columns["tokens/id"][first:last],
            token_offsets=token_offsets[lo : hi + 1] - first,
            teacher_logprobs=columns["tokens/teacher_logprob"][first:last],
            texts=tuple(texts[lo:hi]),
        )
        for i, ((lo, hi), (first, last)) in enumerate(zip(node_spans, token_spans, strict=True))
    ]


def read_block(read: Callable[[str, int, int], Array], start: int, stop: int) -> dict[str, Array]:
    """Columns of problems [start, stop), ends counted from the block's start; `read(column, lo, hi)` gives rows."""
    ranges = {"problem": (start, stop)}
    columns: dict[str, Array] = {}
    for name, column in COLUMNS.items():
        lo, hi = ranges[column.axis]
        if column.ends is None:
            columns[name] = read(name, lo, hi)
        else:
            columns[name], ranges[column.ends] = read_ends(read, name, lo, hi)
    return columns


def read_ends(read: Callable[[str, int, int], Array], name: str, lo: int, hi: int) -> tuple[Ends, tuple[int, int]]:
    """Rows [lo, hi) of a column of ends, counted from the first row's start, and the range of rows they close."""
    rows = read(name, max(lo - 1, 0), hi).astype(np.int64, copy=False)
    base = int(rows[0]) if lo > 0 and len(rows) else 0
    ends = rows[1:] - base if lo > 0 else rows
    return ends, (base, base + (int(ends[-1]) if len(ends) else 0))


def rebase(columns: Columns, counts: Counts) -> dict[str, Array]:
    """The same block with its ends counted from the start of a store that already holds `counts` rows."""
    return {
        name: values if (ends := COLUMNS[name].ends) is None else values.astype(np.int64) + counts[ends]
        for name, values in columns.items()
    }


def strings_of(read: Callable[[str, int, int], Array], column: str, start: int, stop: int) -> list[str]:
    """The strings of problems [start, stop) in one of the columns problems/id, problems/question, problems/answer."""
    ends, (lo, hi) = read_ends(read, f"{column}_end", start, stop)
    return _decode(read(column, lo, hi), ends)


def _check_shapes(tree: ProblemTree) -> None:
    P, T = len(tree.parent), len(tree.token_ids)
    if P == 0:
        raise TreeDataError(f"problem {tree.id!r} has no nodes; store at least its root")
    for field, column in _FIELD_COLUMNS.items():
        array, length = getattr(tree, field), T if column.startswith("tokens/") else P
        if array.shape != (length,) or array.dtype != np.dtype(COLUMNS[column].dtype):
            wanted = f"{np.dtype(COLUMNS[column].dtype)} ({length},)"
            raise TreeDataError(f"problem {tree.id!r}: {field} is {array.dtype} {array.shape}, must be {wanted}")
    offsets = tree.token_offsets
    if offsets.shape != (P + 1,) or offsets.dtype != np.int64 or offsets[0] != 0 or offsets[-1] != T:
        raise TreeDataError(f"problem {tree.id!r}: token_offsets must be int64 ({P + 1},) from 0 to {T}")
    if len(tree.texts) != P:
        raise TreeDataError(f"problem {tree.id!r} has {len(tree.texts)} texts for {P} nodes")


def _ends(lengths: Iterable[int]) -> Ends:
    return np.cumsum(np.fromiter(lengths, np.int64))


def _spans(ends: Array) -> list[tuple[int, int]]:
    return list(pairwise([0, *ends.tolist()]))


def _encode(column: str, strings: Sequence[str]) -> tuple[Array, Ends]:
    try:
        encoded = [string.encode() for string in strings]
    except UnicodeEncodeError as error:
        raise TreeDataError(f"{column}: {error.object[error.start]!r} cannot be written as UTF-8") from error
    return np.frombuffer(b"".join(encoded), np.uint8), _ends(map(len, encoded))


def _decode(utf8: Array, ends: Array) -> list[str]:
    blob = utf8.tobytes()
    if blob.isascii():  # bytes and characters coincide, and slicing text is faster than decoding slices
        text = blob.decode()
        return [text[lo:hi] for lo, hi in _spans(ends)]
    return [blob[lo:hi].decode() for lo, hi in _spans(ends)]
