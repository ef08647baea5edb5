"""Exact grading of a final number, compared as a fraction: the graders `number` and `number-strict`.

GSM8K's own scorer (github.com/openai/grade-school-math, `dataset.py`) takes what `#### (\\-?[0-9\\.\\,]+)` finds
first, without its commas, and compares strings. What it calls right is right here, unless the answer was revised after
it, or the number is part of something larger (`1/2`, `5-3`, `5, 6`). Beyond it, equal values are equal (`72.00`, `$72`,
`144/2`), and a line may hold words around its only number.

Nothing is evaluated and nothing is slow: at most `_LINE_CHARS` characters of a line are looked at, and a number of more
than `_MAX_DIGITS` digits is no answer.
"""

import re
from fractions import Fraction
from functools import lru_cache

from treeopo.problems.answers import ANSWER_MARK, BOXED, boxed_at, claims, tail
from treeopo.records import Problem

__all__ = [
    "ANSWER_MARK",
    "NumberGrader",
    "StrictNumberGrader",
    "final_answer",
    "grade",
    "grade_strict",
    "marked_answer",
    "number_answer",
    "number_answer_strict",
    "parse_number",
    "strip_calculator",
]

Exact = int | Fraction
"""A number without rounding; `int` where it is written as one, which is several times as fast."""

_LINE_CHARS = 256
_MAX_DIGITS = 64
_DRESS = str.maketrans({**dict.fromkeys("$€£¥\\"), "\N{MINUS SIGN}": "-"})
_INTEGER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_NUMBER = rf"([-+]?)\s*((?:{_INTEGER})(?:\.[0-9]+)?|\.[0-9]+)(?:\s*/\s*([0-9]+))?"
_ANY = re.compile(_NUMBER)
_FIRST = re.compile(rf"[\s:({{\[*_]*{_NUMBER}")
_MORE = re.compile(r"\s*[-+*/^=:,.×÷]{0,2}\s*[0-9]|[eE][-+]?[0-9]")  # what makes a number part of something larger
_CALCULATOR = re.compile(r"<<[^<>]*>>")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*([0-9]+)\s*\}\s*\{\s*([0-9]+)\s*\}")
_LATEX_SPACE = re.compile(r"\\[!,;: ]")
_LATEX_TIMES = re.compile(r"\\(?:times|cdot|div)\b")


def strip_calculator(text: str) -> str:
    """`text` without GSM8K's calculator annotations, `<<48/2=24>>`."""
    return _CALCULATOR.sub("", text)


def parse_number(text: str) -> Exact | None:
    """The one number in `text`: `-1,234.50`, `$3`, `3/4`, `42 apples`; None where there is none, or more than one."""
    numbers = _ANY.findall(_plain(text))
    return _value(*numbers[0]) if len(numbers) == 1 else None


def marked_answer(text: str) -> Exact | None:
    """The number on the line after the last `####` of a solution (None: no mark, or not a number)."""
    _, mark, rest = tail(text).rpartition(ANSWER_MARK)
    return _stated(rest) if mark else None


def final_answer(text: str) -> Exact | None:
    """The number that a solution ends in: after the last of `####`, `\\boxed{}` and "answer is".

    A `####` or `\\boxed` without a readable number is no answer, whatever stands before it; "answer is" counts only
    where a number follows at once ("the answer is not clear" is prose).
    """
    text = tail(text)
    marked, boxed = text.rfind(ANSWER_MARK), text.rfind(BOXED)
    last = max(marked, boxed)
    for position, rest in claims(text):
        if position < last:
            break
        answer = _leading(_plain(rest))
        if answer is not None:
            return answer
    if last < 0:
        return None
    if marked > boxed:
        return _stated(text[marked + len(ANSWER_MARK) :])
    content = boxed_at(text, boxed)
    return None if content is None else _stated(content)


def grade(problem: Problem, text: str) -> float:
    """1.0 if `final_answer` of `text` equals the problem's exactly, else 0.0. Never raises."""
    answer = final_answer(text)
    return float(answer is not None and answer == _gold(problem.answer))


def grade_strict(problem: Problem, text: str) -> float:
    """`grade` by `marked_answer`: only `####` states an answer."""
    answer = marked_answer(text)
    return float(answer is not None and answer == _gold(problem.answer))


def number_answer(text: str) -> str:
    """`final_answer` as a reduced fraction, empty where there is none: equal numbers read equal."""
    return _reduced(final_answer(text))


def number_answer_strict(text: str) -> str:
    """`number_answer` by `marked_answer`."""
    return _reduced(marked_answer(text))


class NumberGrader:
    """The number after the last `####`, `\\boxed{}` or "answer is"."""

    prompt_ending = "End with a line that holds #### and the answer."

    def parse_gold(self, text: str, *, worked: bool) -> str:
        """What follows the last `####`, or (not worked) the only number of a text."""
        _, mark, rest = text.rpartition(ANSWER_MARK)
        if (worked and not mark) or parse_number(rest) is None:
            raise ValueError(f"does not end in {f'`{ANSWER_MARK} number`' if worked else 'one number'}")
        return rest.strip()

    def answer(self, text: str) -> str:
        return number_answer(text)

    def grade(self, problem: Problem, text: str) -> float:
        return grade(problem, text)

    def quick(self, problem: Problem, text: str) -> float | None:
        """Numbers take microseconds, whatever the text."""
        return grade(problem, text)


class StrictNumberGrader(NumberGrader):
    """The number after the last `####` alone."""

    def answer(self, text: str) -> str:
        return number_answer_strict(text)

    def grade(self, problem: Problem, text: str) -> float:
        return grade_strict(problem, text)

    def quick(self, problem: Problem, text: str) -> float | None:
        return grade_strict(problem, text)


def _reduced(answer: Exact | None) -> str:
    return "" if answer is None else str(answer)


_gold = lru_cache(maxsize=16_384)(parse_number)


def _stated(rest: str) -> Exact | None:
    """The number that the first line of `rest` begins with, or the only one it holds."""
    line = _plain(rest.lstrip().partition("\n")[0])
    number = _leading(line)
    if number is not None:
        return number
    numbers = _ANY.findall(line)
    return _value(*numbers[0]) if len(numbers) == 1 else None


def _leading(line: str) -> Exact | None:
    found = _FIRST.match(line)
    return _value(*found.groups()) if found and not _MORE.match(line, found.end()) else None


def _plain(line: str) -> str:
    """`line` without currency, emphasis, LaTeX and calculator marks; a number that the limit cuts is left out whole."""
    if len(line) > _LINE_CHARS:
        line = line[:_LINE_CHARS].rstrip("0123456789.,/")
    if "{,}" in line:
        line = line.replace("{,}", ",")
    if "<<" in line:
        line = strip_calculator(line)
    if "\\" in line:
        line = _LATEX_TIMES.sub("*", _LATEX_SPACE.sub("", _FRACTION.sub(r"\1/\2", line)))
    return line.translate(_DRESS)


def _value(sign: str, digits: str, denominator: str | None) -> Exact | None:
    if len(digits) + len(denominator or "") > _MAX_DIGITS:
        return None
    digits = digits.replace(",", "")
    if "." not in digits and not denominator:
        return -int(digits) if sign == "-" else int(digits)
    divisor = int(denominator or "1")
    if divisor == 0:
        return None
    value = Fraction(digits) / divisor
    return -value if sign == "-" else value
