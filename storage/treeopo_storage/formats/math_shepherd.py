"""Math-Shepherd (Wang et al., 2023, arXiv:2312.08935; peiyi9979/Math-Shepherd), and its form in TRL.

Each step has a label, "+" where a solution can go on from it to the right answer, so the last one's is the verdict. No
row has the gold answer: it is what a right solution of the same question ends in.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from treeopo_storage.cells import shown
from treeopo_storage.formats.base import Format, Found, LeftOut, by_row, field
from treeopo_storage.formats.plain import steps_of
from treeopo_storage.traces import Trace

_MARK, _ONE = "ки", "\ue000"  # of one character, the labelled text is as long as the marked one
_FIRST_STEP = re.compile(r"Step 1:|step 1:")
_END = re.compile(r"answer is:?\s*(?P<final>.*?)\s*$", re.DOTALL)


def _traces(row: Any, where: str) -> Iterator[Trace | LeftOut]:
    marked = "completions" not in row if isinstance(row, Mapping) else True
    try:
        question, steps, labels = _marked(row) if marked else _listed(row)
    except _MisplacedError:
        yield LeftOut("with marks that do not fit their labels")
        return
    ends = _END.search(steps[-1])
    if ends is None:
        yield LeftOut("without an answer at the end")
        return
    final = ends["final"].rstrip(".") or ends["final"]
    yield Trace(question, question, "", question, tuple(steps), float(labels[-1]), final=final)


class _MisplacedError(Exception):
    """A row whose marks are not where its labels are; the published file has a few."""


def _marked(row: Any) -> tuple[str, list[str], list[bool]]:
    """Question, steps and labels of a row whose steps end in a mark, at which place the label has + or -."""
    text, label = field(row, "input").replace(_MARK, _ONE), field(row, "label")
    places = [place for place, character in enumerate(text) if character == _ONE]
    if not places or any(label[place : place + 1] not in ("+", "-") for place in places):
        raise _MisplacedError
    pieces = text.split(_ONE)
    first = next((number for number, piece in enumerate(pieces) if _FIRST_STEP.search(piece)), None)
    if first is None or pieces[-1].strip():
        raise _MisplacedError
    start = _FIRST_STEP.search(pieces[first])
    assert start is not None
    question = "".join([*pieces[:first], pieces[first][: start.start()]]).strip()  # a mark inside the question is none
    steps = [pieces[first][start.start() :].strip(), *(piece.strip() for piece in pieces[first + 1 : -1])]
    if not question or not all(steps):
        raise _MisplacedError
    return question, steps, [label[place] == "+" for place in places[first:]]


def _listed(row: Any) -> tuple[str, list[str], list[bool]]:
    """The same of a row of TRL: `prompt`, `completions` and `labels`."""
    steps, labels = field(row, "completions", steps_of), field(row, "labels", _list)
    if len(steps) != len(labels) or not all(isinstance(label, bool) for label in labels):
        raise ValueError("'labels' is not one label, true or false, for each of 'completions'")
    return field(row, "prompt"), [step.strip() for step in steps], list(labels)


def _list(value: Any) -> Sequence[Any]:
    if not isinstance(value, list):
        raise ValueError(f"is {shown(value)}; give a list")
    return value


def _read(paths: Iterable[Path]) -> Iterator[Found]:
    found = list(by_row(_traces)(paths))
    golds: dict[str, str] = {}
    for _, trace in found:
        if isinstance(trace, Trace) and trace.reward == 1.0 and trace.final:
            golds.setdefault(trace.question, trace.final)
    for where, trace in found:
        if isinstance(trace, LeftOut):
            yield where, trace
        elif trace.question in golds:
            yield where, replace(trace, answer=golds[trace.question])
        else:
            yield where, LeftOut("whose question has no right solution, so that nothing states its gold answer")


def _fits(row: Mapping[str, Any]) -> bool:
    return {"input", "label"} <= set(row) or {"prompt", "completions", "labels"} <= set(row)


MATH_SHEPHERD = Format("math-shepherd", "Math-Shepherd", ("recorded", "graded"), _fits, _read)
