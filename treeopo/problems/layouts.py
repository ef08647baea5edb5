"""Which columns of a row are the question and the gold answer: the published layouts, and any other by name.

GSM8K: https://github.com/openai/grade-school-math (Cobbe et al., 2021, arXiv:2110.14168). GSM-Symbolic: Mirzadeh et
al., 2024, arXiv:2410.05229. MATH: https://github.com/hendrycks/math (Hendrycks et al., 2021, arXiv:2103.03874); its 500
of Lightman et al., 2023, arXiv:2305.20050.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from treeopo.errors import ProblemError
from treeopo.problems.answers import ANSWER_MARK, last_boxed
from treeopo.problems.grading import parse_number, strip_calculator
from treeopo.problems.problem_set import STEP_SEPARATOR
from treeopo.problems.rows import Row
from treeopo.problems.settings import Family
from treeopo.records import Problem


@dataclass(frozen=True, slots=True)
class Layout:
    """Columns of a row. `is_worked`: the answer column holds a worked solution that states the gold in the family's own
    way (`####`, `\\boxed{}`). `id`: columns that tell rows apart; without them it is the hash of the question.
    """

    question: str
    answer: str
    family: Family
    solution: str | None = None
    id: tuple[str, ...] = ()
    is_worked: bool = False


GSM8K = Layout("question", "answer", Family.NUMBER, solution="answer", is_worked=True)
GSM_SYMBOLIC = Layout("question", "answer", Family.NUMBER, solution="answer", id=("id", "instance"), is_worked=True)
MATH = Layout("problem", "solution", Family.MATH, solution="solution", is_worked=True)
MATH_500 = Layout("problem", "answer", Family.MATH, solution="solution", id=("unique_id",))


def recognise(row: Any) -> Layout:
    """The published layout that a row's columns are those of; GSM8K's where they are no other's."""
    columns = set(row) if isinstance(row, Mapping) else set()
    if {"problem", "solution"} <= columns:
        return MATH_500 if {"answer", "unique_id"} <= columns else MATH
    return GSM_SYMBOLIC if {"id", "instance"} <= columns else GSM8K


def read_problems(rows: Iterable[Row], name: str, layout: Layout | None) -> tuple[Layout, list[Problem]]:
    """Every row as a problem; the first one's columns decide where no layout is given. No rows, no problems.

    An id does not depend on the order of the rows: a single id column as it is, several after the set's `name`, else
    the hash of the question. Rows that share one are told apart by a number.

    Raises:
        ProblemError: a row is not a problem with a gradable answer; it is named.
    """
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        return layout or GSM8K, []
    layout = layout or recognise(first[1])
    problems: list[Problem] = []
    seen: Counter[str] = Counter()
    for where, row in chain([first], rows):
        problem = _problem(row, where, name, layout)
        seen[problem.id] += 1
        again = f"-{seen[problem.id]}" if seen[problem.id] > 1 else ""
        problems.append(Problem(problem.id + again, problem.question, problem.answer, problem.solution))
    return layout, problems


def _problem(row: Any, where: str, name: str, layout: Layout) -> Problem:
    question, answer = (_text(row, column, layout.is_worked) for column in (layout.question, layout.answer))
    if question is None or answer is None:
        columns = f"`{layout.question}` and `{layout.answer}`"
        raise ProblemError(f"{where}: needs an object with the texts {columns}; mend or remove the row")
    gold = _gold(answer, layout)
    if gold is None:
        wanted = {Family.MATH: "an answer" if not layout.is_worked else "a closed \\boxed{} with an answer"}
        stated = wanted.get(layout.family, f"`{ANSWER_MARK} number`" if layout.is_worked else "one number")
        raise ProblemError(f"{where}: `{layout.answer}` does not end in {stated}; mend or remove the row")
    solution = _text(row, layout.solution, True) if layout.solution else None
    if solution is not None and layout.family is not Family.MATH and layout.is_worked:
        solution = _steps(solution, gold)
    return Problem(_id(row, where, name, question, layout), question, gold, solution)


def _text(row: Any, column: str, is_text: bool) -> str | None:
    """A column's text, or None; a number counts as its text where the layout does not promise texts."""
    value = row.get(column) if isinstance(row, Mapping) else None
    if not is_text and isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    return value if isinstance(value, str) and value.strip() else None


def _gold(answer: str, layout: Layout) -> str | None:
    if layout.family is Family.MATH:
        boxed = last_boxed(answer)
        gold = boxed if boxed is not None or layout.is_worked else answer
        return gold.strip() if gold and gold.strip() else None
    _, mark, rest = answer.rpartition(ANSWER_MARK)
    if layout.is_worked and not mark:
        return None
    return rest.strip() if parse_number(rest) is not None else None


def _steps(answer: str, gold: str) -> str:
    """GSM8K's worked solution as treeopo writes them: no calculator marks, a blank line between steps."""
    lines = (strip_calculator(line).strip() for line in answer.rpartition(ANSWER_MARK)[0].splitlines())
    return STEP_SEPARATOR.join([*(line for line in lines if line), f"{ANSWER_MARK} {gold}"])


def _id(row: Mapping[str, Any], where: str, name: str, question: str, layout: Layout) -> str:
    if not layout.id:
        return f"{name}-{hashlib.sha256(question.encode()).hexdigest()[:12]}"
    values = [row.get(column) for column in layout.id]
    if any(value is None or value == "" for value in values):
        columns = " and ".join(f"`{column}`" for column in layout.id)
        raise ProblemError(f"{where}: its id, {columns}, is empty; mend or remove the row")
    return str(values[0]) if len(values) == 1 else "-".join([name, *map(str, values)])
