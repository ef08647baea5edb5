"""Completions and their verdicts by the grader `math`, written by hand; the pool says what math-verify says."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from math_verify import LatexExtractionConfig, parse, verify

from treeopo.problems.graders import OpenGrader, open_grader
from treeopo.problems.graders.math import MAX_ANSWER_CHARS, math_answer, quick_verdict, spelled_answer
from treeopo.problems.settings import GradingSettings
from treeopo.records import Problem

VERDICTS = [
    # gold, final answer in \boxed{}, right
    ("4", "4", True),
    ("4", "04", True),
    ("4", "4.0", True),
    ("4", r"\frac{8}{2}", True),
    ("4", "2^2", True),
    ("4", r"\sqrt{16}", True),
    ("4", "2+2", True),
    ("4", "x = 4", True),
    ("4", "5", False),
    ("4", "-4", False),
    ("4", "40", False),
    ("4", "four", False),
    ("4", r"\text{4}", True),
    ("4", "$4$", True),
    ("4", "4.", True),
    (r"\frac{1}{2}", "0.5", True),
    (r"\frac{1}{2}", "1/2", True),
    (r"\frac{1}{2}", r"\dfrac{1}{2}", True),
    (r"\frac{1}{2}", r"\tfrac12", True),
    (r"\frac{1}{2}", r"\frac{2}{4}", True),
    (r"\frac{1}{2}", r"50\%", True),
    (r"\frac{1}{2}", r"\frac{1}{3}", False),
    (r"\frac{1}{2}", "2", False),
    (r"-\frac{1}{2}", r"\frac{-1}{2}", True),
    (r"\frac{1}{3}", "0.333333", True),  # math-verify rounds to six places
    (r"\frac{1}{3}", "0.33", False),
    ("0.15", r"\frac{3}{20}", True),
    (r"\sqrt{2}", r"2^{1/2}", True),
    (r"\sqrt{2}", r"\frac{2}{\sqrt{2}}", True),
    (r"\sqrt{2}", r"\sqrt{3}", False),
    (r"6\sqrt{2}", r"\sqrt{72}", True),
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}", True),
    (r"2\pi", r"\pi + \pi", True),
    (r"2\pi", "6.28", False),
    (r"7\pi", "7", False),
    ("x^2+2x+1", "(x+1)^2", True),
    ("x^2+2x+1", "1+2x+x^2", True),
    ("x^2+2x+1", "(x-1)^2", False),
    ("x^2-1", "(x-1)(x+1)", True),
    ("2k", r"k \cdot 2", True),
    ("2k", "2m", False),
    ("y = -2x", "-2x", True),
    ("y = 2x + 3", "y = 3 + 2x", True),
    ("y = 2x + 3", "y = 2x - 3", False),
    (r"(3, \frac{\pi}{2})", r"\left( 3, \frac{\pi}{2} \right)", True),
    ("(1,2)", "(2,1)", False),
    ("(1,2)", "(1,2,3)", False),
    ("1,2,3", "3, 2, 1", True),  # a list is a set
    ("1,2,3", "1,2", False),
    (r"\{1,2\}", r"\{2,1\}", True),
    (r"(-\infty, 2)", r"(-\infty,2)", True),
    (r"(-\infty, 2) \cup (3, \infty)", r"(3,\infty) \cup (-\infty,2)", True),
    (r"[0,1]", "(0,1)", False),
    (r"90^\circ", "90", True),
    (r"90^\circ", r"90^{\circ}", True),
    (r"90^\circ", r"45^\circ", False),
    (r"\$18.90", "18.90", True),
    (r"10,\!080", "10080", True),
    (r"10,\!080", "10,080", True),
    (r"\text{(E)}", "E", True),
    (r"\text{(E)}", "(D)", False),
    (r"\text{even}", r"\text{even}", True),
    (r"\text{even}", r"\text{odd}", False),
    ("6 - 5i", "-5i + 6", True),
    ("6 - 5i", "6 + 5i", False),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", True),
    (r"\begin{pmatrix} 1/5 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 0.2 \\ \frac{4}{2} \end{pmatrix}", True),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}", False),
    ("2^{10}", "1024", True),
    ("5!", "120", True),
    (r"\binom{5}{2}", "10", True),
    (r"\log_2 8", "3", True),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def grader() -> AsyncIterator[OpenGrader]:
    async with open_grader("math", GradingSettings(workers=1, deadline_seconds=60)) as opened:
        yield opened


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("gold", "answer", "right"), VERDICTS)
async def test_the_verdict_is_the_one_written_here(grader: OpenGrader, gold: str, answer: str, right: bool) -> None:
    assert await grader(Problem("p", "?", gold), f"Thus it is $\\boxed{{{answer}}}$.") == float(right)


@pytest.mark.asyncio(loop_scope="module")
async def test_the_pool_says_what_math_verify_says_of_the_same_latex(grader: OpenGrader) -> None:
    config = [LatexExtractionConfig(boxed_match_priority=0)]
    for gold, answer, _ in VERDICTS:
        golds, answers = (parse(f"\\boxed{{{latex}}}", config) for latex in (gold, answer))
        reply = await grader._pool.grade(Problem("p", "?", gold), f"\\boxed{{{answer}}}")
        assert reply.value == float(verify(golds, answers)), (gold, answer)


def test_the_table_is_as_long_as_promised() -> None:
    assert len({(gold, answer) for gold, answer, _ in VERDICTS}) == len(VERDICTS) >= 60


FOUND = [
    (r"\boxed{4}", "4"),
    (r"\boxed{3} then \boxed{4}", "4"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed{\{1,2\}}", r"\{1,2\}"),
    (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
    (r"\boxed {4}", "4"),
    (r"\boxed 4$", "4"),
    (r"\boxed{\boxed{4}}", "4"),
    (r"\boxed{ 4 }", "4"),
    (r"\boxed{4", None),
    (r"\boxed{3} and \boxed{4", None),
    (r"\boxed{}", None),
    (r"\boxed", None),
    ("4", None),
    ("#### 4", None),
    ("", None),
    ("The answer is $x^2$.", "x^2"),
    (r"The final answer is \(x^2\).", "x^2"),
    ("The answer is 4.", "4"),
    ("The answer is: 4/3", "4/3"),
    ("The answer is simple", None),
    (r"The answer is $\boxed{5}$.", "5"),
    (r"\boxed{4}. No: the answer is $5$.", "5"),
    (r"The answer is $5$. No: \boxed{4}", "4"),
    (r"\boxed{4} I hope the answer is right", "4"),
    ("The answer is $}{$", None),
    ("x" * 10**6 + r"\boxed{4}", "4"),
    (r"\boxed{4}" + "x" * 10**6, None),
]


@pytest.mark.parametrize(("text", "answer"), FOUND)
def test_the_last_statement_of_an_answer_is_the_one_found(text: str, answer: str | None) -> None:
    assert math_answer(text) == answer


def test_what_spelling_settles_needs_no_algebra_and_nothing_else_is_settled() -> None:
    assert quick_verdict(r"\frac{1}{2}", r"\dfrac{1}{2}") is True
    assert quick_verdict(r"(1, 2)", r"\left(1,2\right)") is True
    assert quick_verdict("12", "13") is False
    assert quick_verdict("12", "9" * (MAX_ANSWER_CHARS + 1)) is False
    assert quick_verdict("12", "12.5") is None
    assert quick_verdict("x", "y") is None


def test_answers_that_differ_in_looks_are_counted_as_one() -> None:
    assert spelled_answer(r"\boxed{\dfrac{1}{2}}") == spelled_answer(r"\boxed{ \frac{1}{2} }") != ""
    assert spelled_answer("no") == ""
