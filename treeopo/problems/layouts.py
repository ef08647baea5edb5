"""Which columns of a row are the question and the gold answer: the published layouts, and any other by name.

GSM8K: https://github.com/openai/grade-school-math (Cobbe et al., 2021, arXiv:2110.14168). GSM-Symbolic: Mirzadeh et
al., 2024, arXiv:2410.05229. MATH: https://github.com/hendrycks/math (Hendrycks et al., 2021, arXiv:2103.03874); its 500
of Lightman et al., 2023, arXiv:2305.20050.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from treeopo_storage.cells import ABSENT, cell, is_number, shown, text_of, text_or_number

from treeopo.errors import ProblemError, described, shortened
from treeopo.problems.answers import ANSWER_MARK
from treeopo.problems.graders import DEFAULT_GRADER, GRADERS, load_grader
from treeopo.problems.numbers import strip_calculator
from treeopo.problems.problem_set import STEP_SEPARATOR
from treeopo.problems.rows import Row
from treeopo.records import Problem


@dataclass(frozen=True, slots=True)
class Layout:
    """Columns of a row. grader: None where the layout says nothing of it. is_worked: the answer column holds a worked
    solution that states the gold in the grader's own way (`####`, `\\boxed{}`). id: columns that tell rows apart;
    without them, or where `needs_id` is off and the row has none, it is the hash of the question.
    """

    question: str
    answer: str
    grader: str | None = None
    solution: str | None = None
    id: tuple[str, ...] = ()
    is_worked: bool = False
    needs_id: bool = True


GSM8K = Layout("question", "answer", "number", solution="answer", is_worked=True)
GSM_SYMBOLIC = Layout("question", "answer", "number", solution="answer", id=("id", "instance"), is_worked=True)
MATH = Layout("problem", "solution", "math", solution="solution", is_worked=True)
MATH_500 = Layout("problem", "answer", "math", solution="solution", id=("unique_id",))


def recognise(row: Any) -> Layout:
    """The published layout that a row's columns are those of; GSM8K's where they are no other's."""
    columns = set(row) if isinstance(row, Mapping) else set()
    if {"problem", "solution"} <= columns:
        return MATH_500 if {"answer", "unique_id"} <= columns else MATH
    return GSM_SYMBOLIC if {"id", "instance"} <= columns else GSM8K


def read_problems(
    rows: Iterable[Row], name: str, layout: Layout | None, grader: str | None = None, verbatim: bool = False
) -> tuple[str, list[Problem]]:
    """The grader's name, and every row as a problem; the first one's columns decide where no layout is given.

    `grader`, if given, grades in the place of the layout's own. It also reads the gold answers, unless it is one that
    ships and the layout has its own: GSM8K states its golds in GSM8K's way, whatever compares them. verbatim: worked
    solutions as they stand.

    An id does not depend on the order of the rows: a single id column as it is, several after the set's `name`, else
    the hash of the question. Rows that share one are told apart by a number.

    Raises:
        ProblemError: a row is not a problem with a gradable answer; it is named.
    """
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        return grader or DEFAULT_GRADER, []
    layout = layout or recognise(first[1])
    reader = layout.grader if layout.grader and (grader is None or grader in GRADERS) else grader or DEFAULT_GRADER
    problems: list[Problem] = []
    seen: Counter[str] = Counter()
    for where, row in chain([first], rows):
        problem = _problem(row, where, name, layout, reader, verbatim)
        seen[problem.id] += 1
        again = f"-{seen[problem.id]}" if seen[problem.id] > 1 else ""
        problems.append(Problem(problem.id + again, problem.question, problem.answer, problem.solution))
    return grader or reader, problems


def _problem(row: Any, where: str, name: str, layout: Layout, reader: str, verbatim: bool) -> Problem:
    if isinstance(row, Problem):
        _gold(row.answer, where, "answer", reader, worked=False)
        return row
    question, answer = _cell(row, layout.question, where), _cell(row, layout.answer, where)
    worked = layout.is_worked and not is_number(answer)  # a number is the answer itself
    says = text_of if worked else text_or_number
    gold = _gold(_said(says, answer, where, layout.answer), where, layout.answer, reader, worked)
    question = _said(text_of, question, where, layout.question)
    solution = _solution(row, layout, verbatim)
    return Problem(_id(row, where, name, question, layout), question, gold, solution)


def _cell(row: Any, column: str, where: str) -> Any:
    """The value of a column that a row must have."""
    value = cell(row, column)
    if value is ABSENT and isinstance(row, Mapping):
        has = ", ".join(f"`{name}`" for name in list(row)[:8]) or "nothing"
        raise ProblemError(
            f"{where}: has no `{column}`, only {has}; mend the row, or name a file's columns: "
            "FILE?question=COLUMN&answer=COLUMN"
        )
    if value is ABSENT:
        raise ProblemError(f"{where}: is {shown(row)}, where an object with `{column}` is needed; mend or remove it")
    return value


def _said(says: Callable[[Any], str], value: Any, where: str, column: str) -> str:
    try:
        return says(value)
    except ValueError as error:
        raise ProblemError(f"{where}: `{column}` {error}; mend or remove the row") from None


def _solution(row: Any, layout: Layout, verbatim: bool) -> str | None:
    """The worked solution, None where a row has none: that is no fault of it."""
    value = cell(row, layout.solution) if layout.solution else None
    if not isinstance(value, str | bytes) or not value.strip():
        return None
    solution = text_of(value)
    is_gsm8k = layout.grader == "number" and layout.is_worked and ANSWER_MARK in solution
    return _steps(solution) if is_gsm8k and not verbatim else solution


def _gold(answer: str, where: str, column: str, reader: str, worked: bool) -> str:
    """The gold answer that a column states.

    Raises:
        ProblemError: it states none.
    """
    parse_gold = load_grader(reader).parse_gold
    try:
        gold = parse_gold(answer, worked=worked)
    except ValueError as error:
        itself = f", or name the columns (FILE?question=COLUMN&answer={column}) if it is the answer itself"
        raise ProblemError(
            f"{where}: `{column}` {shortened(str(error))}; mend or remove the row{itself if worked else ''}"
        ) from None
    except Exception as error:  # whatever a user's grader raises
        raise ProblemError(f"{where}: `{column}`: parse_gold of grader {reader} raised {described(error)}") from error
    if not isinstance(gold, str) or not gold:
        raise ProblemError(f"{where}: `{column}`: parse_gold of grader {reader} returned no text but {gold!r:.80}")
    return gold


def _steps(answer: str) -> str:
    """GSM8K's worked solution as treeopo writes them: no calculator marks, a blank line between steps."""
    steps, _, gold = answer.rpartition(ANSWER_MARK)
    lines = (strip_calculator(line).strip() for line in steps.split("\n"))
    return STEP_SEPARATOR.join([*(line for line in lines if line), f"{ANSWER_MARK} {gold.strip()}"])


def _id(row: Mapping[str, Any], where: str, name: str, question: str, layout: Layout) -> str:
    if not layout.id or not (layout.needs_id or set(layout.id) <= set(row)):
        return f"{name}-{hashlib.sha256(question.encode()).hexdigest()[:12]}"
    values = [cell(row, column) for column in layout.id]
    if any(value is ABSENT or value is None or value == "" for value in values):
        columns = " and ".join(f"`{column}`" for column in layout.id)
        raise ProblemError(f"{where}: its id, {columns}, is empty; mend or remove the row")
    said = [_said(text_or_number, value, where, column) for value, column in zip(values, layout.id, strict=True)]
    return said[0] if len(said) == 1 else "-".join([name, *said])
