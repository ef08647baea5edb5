"""Grading reads one number after the last `####` and compares it exactly."""

from fractions import Fraction

import pytest

from treeopo.problems import final_answer, grade, parse_number
from treeopo.problems.graders.number import grade_strict
from treeopo.records import Problem


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("42", Fraction(42)),
        (" 42.", Fraction(42)),
        ("42.0", Fraction(42)),
        ("-7", Fraction(-7)),
        ("\N{MINUS SIGN}7", Fraction(-7)),
        ("+7", Fraction(7)),
        ("1,234,567", Fraction(1234567)),
        ("$1,234.50", Fraction(2469, 2)),
        (r"\$5", Fraction(5)),
        ("-$5", Fraction(-5)),
        ("$-5", Fraction(-5)),
        ("€3", Fraction(3)),
        (".5", Fraction(1, 2)),
        ("3/4", Fraction(3, 4)),
        ("-3 / 4", Fraction(-3, 4)),
        ("6/8", Fraction(3, 4)),
        ("12 apples", Fraction(12)),
        ("x = 12", Fraction(12)),
        ("007", Fraction(7)),
        ("1e5", Fraction(100_000)),
        ("1.5e-7", Fraction(15, 10**8)),
        ("3 1/2", Fraction(7, 2)),
        ("1 000 000", Fraction(10**6)),
    ],
)
def test_one_number_is_read_whatever_its_dress(text: str, number: Fraction) -> None:
    assert parse_number(text) == number


@pytest.mark.parametrize(
    "text", ["", "none", "5 or 6", "2+3=5", "1,23", "1/0", "1/2/3", "1e99", "nan", "inf", "٤٢", "__import__('os')"]
)
def test_no_number_or_several_is_no_answer(text: str) -> None:
    assert parse_number(text) is None


def problem(answer: str) -> Problem:
    return Problem("p", "?", answer)


def test_only_the_text_after_the_last_mark_counts() -> None:
    assert grade(problem("4"), "#### 3\n\nno, wait\n\n#### 4") == 1.0
    assert grade(problem("3"), "#### 3\n\nno, wait\n\n#### 4") == 0.0
    assert grade_strict(problem("4"), "#### 3\n\nno, wait, the answer is 4") == 0.0
    assert grade(problem("4"), "#### 3\n\nno, wait, the answer is 4") == 1.0


def test_only_the_answer_line_counts() -> None:
    assert grade(problem("4"), "#### 4\n\nQuestion: Ava has 7 pens") == 1.0
    assert grade(problem("4"), "#### \n4\n5") == 1.0


def test_equal_values_written_differently_are_equal() -> None:
    assert grade(problem("1,000"), "#### $1000.00") == 1.0
    assert grade(problem("0.5"), "#### 1/2") == 1.0


def test_nearly_equal_is_wrong() -> None:
    assert grade(problem("1/3"), "#### 0.3333333333") == 0.0


def test_an_ungradable_gold_is_never_matched() -> None:
    assert grade(problem("unknown"), "#### unknown") == 0.0
    assert grade(problem(""), "####") == 0.0


@pytest.mark.parametrize("tail", ["9" * 10**7, "1," * 10**6, "-" * 10**7, " " * 10**7, "1/" * 10**6, "\n" * 10**6])
def test_enormous_answers_are_no_answers(tail: str) -> None:
    assert final_answer("#### " + tail) is None


def test_a_long_number_is_no_answer_even_where_its_head_is_the_gold() -> None:
    assert grade(problem("9" * 300), "#### " + "9" * 300) == 0.0
    assert grade(problem("1"), "#### 1" + "0" * 1000) == 0.0
