"""GSM8K as published: JSON Lines with `question` and `answer`, the answer's last line being `#### number`.

https://github.com/openai/grade-school-math (Cobbe et al., 2021, arXiv:2110.14168).
"""

import hashlib
import json
import re
from collections import Counter
from pathlib import Path

from treeopo.errors import ProblemError
from treeopo.problems.grading import ANSWER_MARK, final_answer
from treeopo.problems.problem_set import STEP_SEPARATOR
from treeopo.records import Problem

_CALCULATOR = re.compile(r"<<[^<>]*>>")


def read_gsm8k(path: Path, limit: int) -> list[Problem]:
    """The first `limit` problems of a file. An id is the hash of its question, so it survives reordering.

    Raises `ProblemError`, naming file and line, for a row that is not a problem with a gradable answer.
    """
    problems: list[Problem] = []
    seen: Counter[str] = Counter()
    try:
        with path.open("rb") as rows:
            for number, row in enumerate(rows, start=1):
                if len(problems) == limit:
                    break
                if row.strip():
                    problems.append(_problem(row, f"{path}:{number}", path.stem, seen))
    except OSError as error:
        raise ProblemError(f"{path}: cannot be read ({error.strerror}); give a JSON Lines file of problems") from error
    if not problems:
        raise ProblemError(f"{path}: no problems in it; each line must be an object with question and answer")
    return problems


def _problem(row: bytes, where: str, stem: str, seen: Counter[str]) -> Problem:
    try:
        fields = json.loads(row.decode("utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ProblemError(f"{where}: not a line of JSON ({error}); give GSM8K's JSON Lines") from error
    question, answer = (fields.get(key) if isinstance(fields, dict) else None for key in ("question", "answer"))
    if not (isinstance(question, str) and question.strip() and isinstance(answer, str)):
        raise ProblemError(f"{where}: needs an object with the texts `question` and `answer`; mend or remove the line")
    if final_answer(answer) is None:
        raise ProblemError(f"{where}: `answer` does not end in `{ANSWER_MARK} number`; mend or remove the line")
    steps, _, gold = answer.rpartition(ANSWER_MARK)
    key = f"{stem}-{hashlib.sha256(question.encode()).hexdigest()[:12]}"
    seen[key] += 1
    return Problem(
        id=key if seen[key] == 1 else f"{key}-{seen[key]}",
        question=question,
        answer=gold.strip(),
        solution=_solution(steps, gold.strip()),
    )


def _solution(steps: str, gold: str) -> str:
    """The worked solution as treeopo writes them: calculator marks removed, one step a line, blank lines between."""
    lines = (_CALCULATOR.sub("", line).strip() for line in steps.splitlines())
    return STEP_SEPARATOR.join([*(line for line in lines if line), f"{ANSWER_MARK} {gold}"])
