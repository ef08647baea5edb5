"""What a tree store holds: the tree of one problem, the settings it was made under, and the columns on disk.

Dimension letters: P nodes (prefixes), T tokens. A node *is* a prefix: the steps on the path from the root to it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final

import numpy as np
import numpy.typing as npt

SCHEMA_VERSION: Final = 1
NO_PARENT: Final = -1


class Action(IntEnum):
    """How a node's step was asked for: the search actions A1 to A5 of rStar (Qi et al., 2024)."""

    ROOT = 0
    STEP = 1  # A1: one reasoning step
    SOLUTION = 2  # A2: the remaining steps at once
    SUBQUESTION = 3  # A3: the next sub-question and its answer
    REANSWER = 4  # A4: answer the sub-question again
    REPHRASE = 5  # A5: rephrase the question


@dataclass(frozen=True, slots=True, eq=False)
class ProblemTree:
    """The search tree of one problem as a struct of arrays, parents before children, the root first.

    The root's step is the prompt's own tokens. `teacher_logprobs` are NaN on prompt tokens and where unknown;
    `reward` is NaN where a node is not terminal. `texts[p]` is the text of node p's step.
    """

    id: str
    question: str
    answer: str
    parent: npt.NDArray[np.int32]  # (P,) index inside this tree, NO_PARENT at the root
    depth: npt.NDArray[np.int32]  # (P,) steps after the prompt
    visits: npt.NDArray[np.int32]  # (P,)
    value_sum: npt.NDArray[np.float64]  # (P,) sum of the returns backed up through the node
    terminal: npt.NDArray[np.bool_]  # (P,)
    reward: npt.NDArray[np.float32]  # (P,)
    action: npt.NDArray[np.int8]  # (P,) values of Action
    token_ids: npt.NDArray[np.int32]  # (T,) the steps' tokens, in node order
    token_offsets: npt.NDArray[np.int64]  # (P+1,) node p's step is token_ids[token_offsets[p]:token_offsets[p + 1]]
    teacher_logprobs: npt.NDArray[np.float32]  # (T,)
    texts: tuple[str, ...]  # P

    @property
    def node_count(self) -> int:
        return len(self.parent)

    def path(self, node: int) -> list[int]:
        """Nodes from the root to `node`, both included."""
        return path_to_root(self.parent, node)[::-1]

    def prefix_tokens(self, node: int) -> npt.NDArray[np.int32]:
        """Tokens (T,) of the path root→node: the prompt followed by every step."""
        return gather_prefix(self.parent, self.token_offsets, self.token_ids, node)


def path_to_root(parent: npt.NDArray[np.int32], node: int) -> list[int]:
    """Nodes from `node` up to the root; `IndexError` if there is no such node."""
    if not 0 <= node < len(parent):
        raise IndexError(f"node {node} is not one of this tree's {len(parent)} nodes")
    path = [node]
    while (node := int(parent[node])) != NO_PARENT:
        path.append(node)
    return path


def gather_prefix(
    parent: npt.NDArray[np.int32], token_offsets: npt.NDArray[np.int64], token_ids: npt.NDArray[np.int32], node: int
) -> npt.NDArray[np.int32]:
    """Tokens (T,) of the steps on the path root→node of one tree: parent (P,), token_offsets (P+1,), token_ids (T,)."""
    steps = [token_ids[token_offsets[p] : token_offsets[p + 1]] for p in path_to_root(parent, node)]
    return np.concatenate(steps[::-1])


IMPORTED = "imported"
"""`StoreMeta.teacher` of a store whose traces came from a file: nobody knows who wrote them."""


@dataclass(frozen=True, slots=True)
class StoreMeta:
    """The settings a store's trees were made under; fixed when the store is created.

    `search` is any JSON-able mapping (budget, depth, temperature, prompts, ...). Token ids at or beyond
    `vocabulary_size`, where it is given, are refused.
    """

    tokenizer_fingerprint: str
    teacher: str
    search: Mapping[str, object] = field(default_factory=dict)
    separator: str = "\n\n"
    vocabulary_size: int | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """One array on disk. Its rows lie along `axis`; `ends` names the axis whose row ranges its values close:
    row i owns [value[i-1], value[i]) of that axis (value[-1] read as 0)."""

    axis: str
    dtype: str
    ends: str | None = None

    @property
    def is_text(self) -> bool:
        """UTF-8 bytes; the only columns that are compressed."""
        return self.dtype == "|u1"


# Order matters twice: a column of ends comes after the axis it lies on has been located.
COLUMNS: Final[Mapping[str, Column]] = {
    "problems/node_end": Column("problem", "<i8", ends="node"),
    "problems/id_end": Column("problem", "<i8", ends="id"),
    "problems/question_end": Column("problem", "<i8", ends="question"),
    "problems/answer_end": Column("problem", "<i8", ends="answer"),
    "problems/id": Column("id", "|u1"),
    "problems/question": Column("question", "|u1"),
    "problems/answer": Column("answer", "|u1"),
    "nodes/token_end": Column("node", "<i8", ends="token"),
    "nodes/text_end": Column("node", "<i8", ends="text"),
    "nodes/parent": Column("node", "<i4"),
    "nodes/depth": Column("node", "<i4"),
    "nodes/visits": Column("node", "<i4"),
    "nodes/value_sum": Column("node", "<f8"),
    "nodes/terminal": Column("node", "|b1"),
    "nodes/reward": Column("node", "<f4"),
    "nodes/action": Column("node", "|i1"),
    "tokens/id": Column("token", "<i4"),
    "tokens/teacher_logprob": Column("token", "<f4"),
    "text/step": Column("text", "|u1"),
}

# Rows of each axis; the counts of a commit record, in this order.
AXES: Final = tuple(dict.fromkeys(column.axis for column in COLUMNS.values()))

Array = npt.NDArray[Any]
Columns = Mapping[str, Array]
Counts = Mapping[str, int]
