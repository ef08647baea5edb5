"""Exact grading of a final number: what stands after the last `####`, compared as a fraction.

Nothing is evaluated, and no input makes it slow: at most `_LINE_CHARS` characters are looked at, and a number of
more than `_MAX_DIGITS` digits is no answer.
"""

import re
from fractions import Fraction

from treeopo.records import Problem

ANSWER_MARK = "####"

_LINE_CHARS = 256
_MAX_DIGITS = 64
_CURRENCY = str.maketrans("", "", "$€£¥\\")
_INTEGER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_NUMBER = re.compile(rf"([-+]?)\s*((?:{_INTEGER})(?:\.[0-9]+)?|\.[0-9]+)(?:\s*/\s*([0-9]+))?")


def parse_number(text: str) -> Fraction | None:
    """The one number in `text`: `-1,234.50`, `$3`, `3/4`, `42 apples`; None where there is none, or more than one."""
    text = text[:_LINE_CHARS].translate(_CURRENCY).replace("\N{MINUS SIGN}", "-")
    numbers = _NUMBER.findall(text)
    if len(numbers) != 1:
        return None
    sign, digits, denominator = numbers[0]
    if len(digits) + len(denominator) > _MAX_DIGITS:
        return None
    divisor = int(denominator or "1")
    if divisor == 0:
        return None
    value = Fraction(digits.replace(",", "")) / divisor
    return -value if sign == "-" else value


def final_answer(text: str) -> Fraction | None:
    """The number on the line after the last `####` of a finished solution (None: no mark, or not one number)."""
    _, mark, rest = text.rpartition(ANSWER_MARK)
    if not mark:
        return None
    lines = rest[:_LINE_CHARS].lstrip().splitlines()
    return parse_number(lines[0]) if lines else None


def grade(problem: Problem, text: str) -> float:
    """1.0 if the final answer in `text` equals the problem's exactly, else 0.0. Never raises."""
    answer = final_answer(text)
    return float(answer is not None and answer == parse_number(problem.answer))


def number_answer(text: str) -> str:
    """The final answer in `text` as a reduced fraction, empty where there is none: equal numbers read equal."""
    answer = final_answer(text)
    return "" if answer is None else str(answer)


async def grade_number(problem: Problem, text: str) -> float:
    """`grade` as the port `Grade`; it takes microseconds, so it may run on the event loop."""
    return grade(problem, text)
