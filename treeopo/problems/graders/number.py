"""Exact grading of a final number, compared as a fraction: the graders `number` and `number-strict`.

GSM8K's own scorer (github.com/openai/grade-school-math, `dataset.py`) takes what `#### (\\-?[0-9\\.\\,]+)` finds
first, without its commas, and compares strings. What it calls right is right here, unless the answer was revised after
it, or the number is part of something larger (`1/2`, `5-3`, `5, 6`, `5 or 7`; `treeopo.problems.numbers`). Beyond it,
equal values are equal (`72.00`, `$72`, `144/2`), and a line may hold words around its only number.
"""

import re
from functools import lru_cache

from treeopo.problems.answers import ANSWER_MARK, claims, last_boxed, last_mark, tail
from treeopo.problems.numbers import Exact, leading_number, parse_number, plain, stated_number, strip_calculator
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

_DIGIT = re.compile("[0-9]")
_IS_STATED = re.compile(
    r"[\s(\[{*_]*[-+.]?\s*(?:[0-9]|\\(?!boxed|fbox)[A-Za-z])"
)  # what begins like a number or LaTeX is no prose


def marked_answer(text: str) -> Exact | None:
    """The number on the line after the last `####` of a solution (None: no mark, or not a number)."""
    text = tail(text)
    mark = last_mark(text)
    return None if mark < 0 else stated_number(text[mark + len(ANSWER_MARK) :])


def final_answer(text: str) -> Exact | None:
    """The number that a solution ends in: after the last of `####`, `\\boxed{}` and "answer is".

    A `####`, a box or an "answer is 5..." without a number that stands alone is no answer, whatever stands before it;
    "answer is" before words ("the answer is not clear") is prose. "Answer: 5" counts where there is neither `####` nor
    box: behind one it belongs to the next question that a base model goes on with. Several boxes of one list are no
    number.
    """
    text = tail(text)
    mark = last_mark(text)
    boxed = last_boxed(text, max(mark, 0))
    last = mark if boxed is None else boxed.position
    for claim in claims(text, max(last, 0)):
        if last >= 0 and not claim.is_sentence:
            continue
        line = plain(claim.rest)
        number = leading_number(line)
        if number is not None and (claim.is_sentence or not _DIGIT.search(line, number.end)):
            return number.value
        if claim.is_sentence and _IS_STATED.match(line):
            return None
    if last < 0:
        return None
    if boxed is None:
        return stated_number(text[mark + len(ANSWER_MARK) :])
    numbers = {stated_number(content) for content in boxed.contents}
    return numbers.pop() if len(numbers) == 1 else None


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

    def reads(self, gold: str) -> bool:
        return parse_number(gold) is not None

    quick_reads = reads

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
