"""rStar (Qi et al., 2024, arXiv:2408.06195; zhentingqi/rStar, `run_src/`): a file of solutions a question.

`Question 0007 - Final Solutions.json` holds what the search ended in, `Question 0007 - Answer.json` beside it the
problem and its gold answer. What it calls a value is the share of votes for an answer, no verdict: rewards are graded.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from treeopo_storage.cells import shown, text_of, text_or_number
from treeopo_storage.errors import TreeDataError
from treeopo_storage.formats.base import Format, Found, LeftOut, RowError, field, in_row
from treeopo_storage.rows import file_rows
from treeopo_storage.traces import Trace

_NAME = re.compile(r"(?P<question>Question \d+) - .*")
_ENDS = ("answer is", "now we can answer the question")  # rstar_utils.py: of a one-step thought, of a sub-question


def _read(paths: Iterable[Path]) -> Iterator[Found]:
    for path in paths:
        rows = list(file_rows(path))
        if rows and not _fits(rows[0][1]):
            where, row = rows[0]
            raise RowError(where, f"is {shown(row)}, no solution of rStar ('trace' and 'rollout_id')", row)
        traces = partial(_traces, _problem(path))
        for where, row in rows:
            for found in in_row(row, where, traces):
                yield where, found


def _problem(path: Path) -> Mapping[str, str]:
    """The problem that a file of solutions is of: the row of the answer file beside it."""
    found = _NAME.fullmatch(path.name)
    name = f"{found['question'] if found else 'Question N'} - Answer.json"
    beside = next(path.parent.glob(f"{name}*"), None)  # compressed or not
    if beside is None:
        raise TreeDataError(f"{path}: needs {name} beside it, which has the problem and its gold answer")
    rows = list(file_rows(beside))
    if len(rows) != 1 or not isinstance(rows[0][1], Mapping):
        raise TreeDataError(f"{beside}: is not one object with 'id', 'problem' and 'gold_answer'")
    try:
        return {
            "id": field(rows[0][1], "id", text_or_number),
            "question": field(rows[0][1], "problem"),
            "answer": field(rows[0][1], "gold_answer", text_or_number),
        }
    except ValueError as error:
        raise TreeDataError(f"{beside}: {error}") from None


def _traces(problem: Mapping[str, str], row: Any, where: str) -> Iterator[Trace | LeftOut]:
    parts = _in_order(field(row, "trace", lambda value: value), "'trace'")
    if not parts or not all(isinstance(part, Mapping) for part in parts):
        raise ValueError("'trace' is not of objects, at least one")
    steps, last = [], ""
    asked = field(parts[0], "user_question")
    if asked.strip() != problem["question"].strip():
        steps.append(asked)  # action A5: the question in other words
    for part in parts:
        if "subquestion" in part:
            steps.append(f"{field(part, 'subquestion').strip()} {field(part, 'subanswer.text').strip()}")
        steps += [text_of(step) for step in _in_order(part.get("ost_step") or {}, "'ost_step'") if step != ""]
    if direct := next((part["direct_answer"] for part in reversed(parts) if part.get("direct_answer")), None):
        steps.append(field(direct, "text"))
    elif steps:
        last = steps[-1].lower()
    if not direct and not any(end in last for end in _ENDS):
        yield LeftOut("without an answer at the end")
        return
    yield Trace(problem["id"], problem["question"], problem["answer"], problem["question"], tuple(steps), reward=None)


def _in_order(parts: Any, name: str) -> list[Any]:
    """The values of an object by numbers, "10" after "9"."""
    if not isinstance(parts, Mapping) or not all(str(key).isdecimal() for key in parts):
        raise ValueError(f"{name} is {shown(parts)}; give an object with the numbers of its parts")
    return [parts[key] for key in sorted(parts, key=int)]


def _fits(row: Any) -> bool:
    return isinstance(row, Mapping) and isinstance(row.get("trace"), Mapping)


RSTAR = Format("rstar", "rStar", ("graded",), _fits, _read, files="* - Final Solutions.json*")
