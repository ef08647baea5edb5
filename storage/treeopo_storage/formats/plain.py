"""treeopo's own layout of traces: question, answer, steps, reward and, if wanted, id and prompt."""

from collections.abc import Iterator, Mapping
from typing import Any

from treeopo_storage.cells import ABSENT, cell, finite_float, shown, text_or_number, whole_characters
from treeopo_storage.formats.base import Format, by_row, field, optional
from treeopo_storage.traces import Trace


def trace_of(row: Any) -> Trace:
    """The trace in a row; without an id or a prompt they are the question.

    Raises:
        ValueError: a column is missing or says something else.
    """
    question = field(row, "question")
    return Trace(
        id=optional(row, "id") or question,
        question=question,
        answer=field(row, "answer", text_or_number),
        prompt=optional(row, "prompt") or question,
        steps=field(row, "steps", steps_of),
        reward=None if cell(row, "reward") in (ABSENT, None) else field(row, "reward", finite_float),
    )


def steps_of(value: Any) -> tuple[str, ...]:
    """A list of steps, none of them empty.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, str):
        raise ValueError("is one text; give a list of texts, a step each")
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"is {shown(value)}; give a list of texts, at least one")
    for index, step in enumerate(value):
        if not isinstance(step, str):
            raise ValueError(f"has {shown(step)} at index {index}; give texts alone")
        if not step:
            raise ValueError(f"has an empty text at index {index}; leave it out")
        whole_characters(step)
    return tuple(value)


def _traces(row: Any, where: str) -> Iterator[Trace]:
    yield trace_of(row)


def _fits(row: Mapping[str, Any]) -> bool:
    return {"question", "answer", "steps"} <= set(row)


TRACES = Format("traces", "treeopo", ("recorded", "graded"), _fits, by_row(_traces))
