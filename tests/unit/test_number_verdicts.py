"""Completions and their verdicts by the grader `number`, written by hand; and how they stand to GSM8K's own scorer."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treeopo.problems import grade
from treeopo.problems.graders.number import grade_strict
from treeopo.records import Problem

VERDICTS = [
    # gold, completion, right
    ("72", "48/2 = <<48/2=24>>24\n48+24 = <<48+24=72>>72\n#### 72", True),
    ("72", "#### 72.", True),
    ("72", "#### 72.0", True),
    ("72", "#### 72.00 dollars", True),
    ("72", "#### $72", True),
    ("72", "####72", True),
    ("72", "####   72  ", True),
    ("72", "#### **72**", True),
    ("72", "**#### 72**", True),
    ("72", "#### 72 clips in 2 months", True),
    ("72", "#### She sold 72 clips", True),
    ("72", "#### She sold 48 + 24 = 72", False),
    ("72", "#### 48 + 24 = 72", False),
    ("72", "#### <<48+24=72>>72", True),
    ("72", "#### 144/2", True),
    ("72", "#### +72", True),
    ("72", "#### -72", False),
    ("72", "#### 720", False),
    ("72", "#### 7 2", False),
    ("72", "#### 72, 73", False),
    ("72", "#### 72 or 73", False),  # a part of what was said
    ("73", "#### 72 or 73", False),
    ("72", "#### seventy-two", False),
    ("72", "####", False),
    ("72", "72", False),
    ("72", "", False),
    ("72", "#### 72\n\nQuestion: how many?", True),
    ("72", "#### 72\n\nQuestion: how many?\n\n#### 9", False),  # the last one counts
    ("9", "#### 72\n\nno: #### 9", True),
    ("72", "### 72", False),
    ("1234567", "#### 1,234,567", True),
    ("1,234", "#### 1234", True),
    ("1234", "#### $1,234.00", True),
    ("1234", "#### 1.234", False),
    ("1234", "#### 12,34", False),
    ("1234", "#### 1,2345", False),
    ("1234", r"#### 1{,}234", True),
    ("1234", r"#### 1,\!234", True),
    ("-5", "#### -5", True),
    ("-5", "#### - 5", True),
    ("-5", "#### -$5", True),
    ("-5", "#### $-5", True),
    ("-5", "#### \N{MINUS SIGN}5", True),
    ("-5", "#### 5", False),
    ("0.5", "#### .5", True),
    ("0.5", "#### 1/2", True),
    ("0.5", "#### 2/4 of it", True),
    ("0.5", "#### 50%", False),
    ("50", "#### 50%", True),
    ("0.5", "#### 1/0", False),
    ("1", "#### 1/2", False),
    ("5", "#### 5-3", False),
    ("5", "#### 5:30", False),
    ("1", "#### 1e5", False),
    ("0", "#### 0", True),
    ("0", "#### -0.0", True),
    ("7", "#### 007", True),
    ("3", "#### €3", True),
    ("3", "#### £3.00", True),
    ("3", "#### ٣", False),
    ("42", r"So it is \boxed{42}.", True),
    ("42", r"$\boxed{42}$", True),
    ("42", r"\boxed{\$42}", True),
    ("42", r"\boxed{42\text{ dollars}}", True),
    ("42", r"\boxed{x = 42}", True),
    ("42", r"\boxed{\frac{84}{2}}", True),
    ("42", r"\boxed{41} \boxed{42}", True),
    ("41", r"\boxed{41} \boxed{42}", False),
    ("42", r"\boxed{6 \times 7}", False),
    ("42", r"\boxed{42", False),
    ("42", r"\boxed{}", False),
    ("42", r"#### 41 so \boxed{42}", True),
    ("42", r"\boxed{41} so #### 42", True),
    ("42", r"#### \boxed{42}", True),
    ("42", "The answer is 42.", True),
    ("42", "The final answer is: 42", True),
    ("42", "the answer is $42$.", True),
    ("42", "The answer is **42**", True),
    ("42", "The answer is not 42", False),
    ("42", "#### 42\nI hope the answer is right.", True),
    ("42", "#### 42\nNo, the answer is 41.", False),
    ("42", "Question 42", False),
]


@pytest.mark.parametrize(("gold", "completion", "right"), VERDICTS)
def test_the_verdict_is_the_one_written_here(gold: str, completion: str, right: bool) -> None:
    assert grade(Problem("p", "?", gold), completion) == right


def test_the_table_is_as_long_as_promised() -> None:
    assert len({(gold, completion) for gold, completion, _ in VERDICTS}) == len(VERDICTS) >= 60


OFFICIAL = re.compile(r"#### (\-?[0-9\.\,]+)")


def official(gold: str, completion: str) -> bool:
    """The rule of openai/grade-school-math, dataset.py: the first match, without commas, compared as text."""
    found = OFFICIAL.search(completion)
    return found is not None and found[1].strip().replace(",", "") == gold.replace(",", "")


# What the official scorer calls right and this one does not: a revised answer, a part of something larger, several.
STRICTER = [
    ("72", "#### 72, 73"),
    ("72", "#### 72 or 73"),
    ("72", "#### 72\n\nQuestion: how many?\n\n#### 9"),
    ("1", "#### 1/2"),
    ("5", "#### 5-3"),
    ("5", "#### 5:30"),
    ("1", "#### 1e5"),
    ("1234", "#### 12,34"),
    ("42", "#### 42\nNo, the answer is 41."),
]


def test_what_the_official_scorer_calls_right_is_right_but_for_the_named_exceptions() -> None:
    stricter = {(gold, text) for gold, text, right in VERDICTS if official(gold, text) and not right}
    assert stricter == set(STRICTER)


@given(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12), st.text(alphabet="abc \n=+12.", max_size=30))
def test_on_golds_as_published_both_scorers_agree(gold: int, said: int, before: str) -> None:
    for completion in (f"{before}\n#### {said}", f"{before}\n#### {said:,}"):
        assert grade(Problem("p", "?", str(gold)), completion) == official(str(gold), completion)
        assert grade_strict(Problem("p", "?", f"{gold:,}"), completion) == official(str(gold), completion)


FORMS = ["{n}", "{n:,}", "{n}.0", "{n:,}.00", "${n:,}", "{n} apples", "{n}.", "{two}/2"]


@given(st.integers(0, 10**15))
def test_eight_printed_forms_of_one_number_agree(n: int) -> None:
    printed = [form.format(n=n, two=2 * n) for form in FORMS]
    assert len(printed) == 8
    for gold in printed:
        for answer in printed:
            assert grade(Problem("p", "?", gold), f"#### {answer}") == 1.0
            assert grade(Problem("p", "?", gold), f"\\boxed{{{answer}}}") == 1.0
            assert grade(Problem("p", "?", gold), f"The answer is {answer}") == 1.0
        assert grade(Problem("p", "?", gold), f"#### {n + 1}") == 0.0


@given(st.fractions(max_denominator=10**6), st.sampled_from(["#### {}", "\\boxed{{{}}}", "so the answer is {}."]))
def test_a_fraction_survives_every_convention(value: object, convention: str) -> None:
    assert grade(Problem("p", "?", str(value)), convention.format(value)) == 1.0


@given(st.decimals(-(10**9), 10**9, places=3), st.booleans())
def test_a_decimal_survives_separators_and_currency(value: object, currency: bool) -> None:
    assert grade(Problem("p", "?", f"{value}"), f"#### {'$' if currency else ''}{value:,}") == 1.0


@given(st.text())
def test_no_text_makes_it_raise(text: str) -> None:
    for convention in ("{}", "#### {}", "\\boxed{{{}}}", "the answer is {}"):
        assert grade(Problem("p", "?", "4"), convention.format(text)) in (0.0, 1.0)


@pytest.mark.parametrize(
    "text",
    [
        "9" * 10**7,
        "#### " + "9" * 10**7,
        "\\boxed{" * 10**6,
        "the answer is " * 10**6,
        "#### " + "<<" * 10**6,
        "\x00" * 10**6,
    ],
)
def test_a_megabyte_of_anything_is_an_answer_at_most(text: str) -> None:
    assert grade(Problem("p", "?", "4"), text) == 0.0
