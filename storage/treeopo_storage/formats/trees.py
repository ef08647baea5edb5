"""Trees of rStar-Math and AlphaMath (Super_MARIO): a node a dotted tag, values in [-1, 1].

rStar-Math: Guan et al., 2025, arXiv:2501.04519 (microsoft/rStar, branch rStar-math: `agents/mcts.py`, `main.py`,
`extra_sft_file.py`). AlphaMath: Chen et al., 2024, arXiv:2405.03553 (MARIO-Math-Reasoning/Super_MARIO:
`agents/mcts.py`, `solver_demo.py`), from which the former comes.
"""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from treeopo_storage.cells import ABSENT, cell, finite_float, shown, text_or_number, whole_number
from treeopo_storage.formats.base import Format, LeftOut, by_row, field, optional
from treeopo_storage.traces import Trace, Visited

_RSTAR, _MARIO = ("rstar",), ("react", "mcts", "sbs")
"""The columns that may hold a row's tree."""

_FAILED = ("Fail to ", "Too many ", "Unable to ")
"""How what these searches write in place of a final answer begins, where a branch was given up."""

_UNVALUED = -100.0
"""What `value` is before a node was valued."""

Tag = tuple[int, ...]


def _rstar_math(row: Any, where: str) -> Iterator[Trace | LeftOut]:
    if cell(row, "prm_full") is not ABSENT:
        yield _extracted(row)
    else:
        yield from _searched(row, where, _tree(row, _RSTAR))


def _alphamath(row: Any, where: str) -> Iterator[Trace | LeftOut]:
    yield from _searched(row, where, _tree(row, _MARIO))


def _holds(columns: tuple[str, ...], row: Mapping[str, Any]) -> bool:
    return any(isinstance(row.get(column), Mapping) for column in columns)


def _tree(row: Any, columns: tuple[str, ...]) -> dict[Tag, Mapping[str, Any]]:
    """The nodes of a row's tree by their tags, in the order of the tags' numbers: 0.2 before 0.10."""
    column = next((name for name in columns if cell(row, name) is not ABSENT), columns[0])
    nodes = field(row, column, lambda value: value)
    if not isinstance(nodes, Mapping) or not all(isinstance(node, Mapping) for node in nodes.values()):
        raise ValueError(f"{column!r} is {shown(nodes)}; give an object of nodes by their tags (0, 0.1, 0.1.2)")
    try:
        tree = dict(sorted((tuple(map(int, tag.split("."))), node) for tag, node in nodes.items()))
    except ValueError:
        raise ValueError(f"{column!r}: its tags are not numbers with points between them (0, 0.1, 0.1.2)") from None
    for tag in tree:
        if len(tag) > 1 and tag[:-1] not in tree:
            raise ValueError(f"{column!r} has a node {_dotted(tag)} and none {_dotted(tag[:-1])}, its parent")
    return tree


def _searched(row: Any, where: str, tree: dict[Tag, Mapping[str, Any]]) -> Iterator[Trace | LeftOut]:
    question, answer = field(row, "question"), field(row, "answer", text_or_number)
    for tag, node in tree.items():
        if node.get("final_answer") in (None, ""):
            continue
        final = field(node, "final_answer", text_or_number)
        path = [tag[:length] for length in range(1, len(tag) + 1)]
        steps = [one for one in path[1:] if _has_text(tree[one])]
        if final.startswith(_FAILED) or not steps:
            yield LeftOut("given up by the search" if steps else "without a text")
            continue
        yield Trace(
            id=optional(row, "id") or question,
            question=question,
            answer=answer,
            prompt=question,
            steps=tuple(field(tree[one], "text") for one in steps),
            reward=_reward(node),
            visited=tuple(_visited(tree[one], f"{where} {_dotted(one)}") for one in [path[0], *steps]),
            final=final,
        )


def _has_text(node: Mapping[str, Any]) -> bool:
    """Roots and empty outputs have none."""
    return node.get("text") is not None and bool(str(node["text"]).strip())


def _visited(node: Mapping[str, Any], name: str) -> Visited | None:
    if cell(node, "visit_count") is ABSENT:  # a beam search counts none
        return None
    visits = field(node, "visit_count", whole_number)
    return Visited(name, visits, _unit(field(node, "q_value", finite_float)) if visits else 0.0)


def _reward(node: Mapping[str, Any]) -> float | None:
    """What the search learned at an end: its mean value, 0 or 1 where it knew the gold answer; None: never valued."""
    if cell(node, "visit_count") is ABSENT or field(node, "visit_count", whole_number) < 1:
        return None
    return None if field(node, "value", finite_float) == _UNVALUED else _unit(field(node, "q_value", finite_float))


def _extracted(row: Any) -> Trace:
    """A solution as rStar-Math's `extra_sft_file.py` leaves it for training: steps and values in `prm_full`."""
    question = field(row, "question")
    try:
        nodes = json.loads(field(row, "prm_full"))[0]["content"]
        steps = [(field(node, "step"), _unit(field(node, "Q", finite_float))) for node in nodes]
    except (LookupError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"'prm_full' is no list of one object with steps ({error})") from None
    counts = field(row, "visit_counts", lambda value: value)
    if not steps or not isinstance(counts, list) or len(counts) != len(steps):
        raise ValueError(f"'visit_counts' is {shown(counts)}; give one for each of {len(steps)} steps of 'prm_full'")
    texts, visited, path = tuple(text for text, _ in steps), [], ""
    for (text, value), count in zip(steps, counts, strict=True):
        path += f"{text}\0"  # the same node in every row of its tree
        visited.append(Visited(path, whole_number(count), value))
    return Trace(
        id=optional(row, "id") or question,
        question=question,
        answer=field(row, "gt", text_or_number),
        prompt=question,
        steps=texts,
        reward=_unit(field(row, "final_Q", finite_float)),
        visited=(None, *visited),
        final=optional(row, "extra_ans"),
    )


def _unit(value: float) -> float:
    """A value in [-1, 1] as a return in [0, 1]."""
    if not -1.0 <= value <= 1.0:
        raise ValueError(f"a value is {value:g}, outside [-1, 1]")
    return (value + 1.0) / 2.0


def _dotted(tag: Tag) -> str:
    return ".".join(map(str, tag))


RSTAR_MATH = Format(
    "rstar-math",
    "rStar-Math",
    ("recorded", "graded"),
    lambda row: _holds(_RSTAR, row) or {"question", "gt", "prm_full"} <= set(row),
    by_row(_rstar_math),
)
ALPHAMATH = Format("alphamath", "AlphaMath", ("recorded", "graded"), partial(_holds, _MARIO), by_row(_alphamath))
