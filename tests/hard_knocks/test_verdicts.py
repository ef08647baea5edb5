"""Verdicts on final answers: the rows of docs/problems.md's table, and what is close to right or equal, by kind."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import lm_eval
import pytest
import pytest_asyncio
import yaml
from lm_eval.tasks.hendrycks_math import utils as hendrycks_math
from math_verify import parse, verify

from treeopo.problems import grade
from treeopo.problems.graders import OpenGrader, open_grader
from treeopo.problems.graders.number import final_answer, parse_number
from treeopo.problems.settings import GradingSettings
from treeopo.records import Problem


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def grader() -> AsyncIterator[OpenGrader]:
    async with open_grader("math", GradingSettings(workers=1, deadline_seconds=60)) as opened:
        yield opened


PAGE = Path(__file__).parents[2] / "docs/problems.md"


class Row(NamedTuple):
    gold: str
    completion: str
    family: str
    verdict: str
    math_verify: str
    harness: str


def table() -> list[Row]:
    """The rows of the table of verdicts, of which the documentation is the only copy."""
    lines = PAGE.read_text().partition("### Verdicts")[2].partition("\n## ")[0].splitlines()
    cells = [line.removeprefix("| ").split(" | ") for line in lines if line.startswith("| `")]
    return [
        Row(gold.strip("`"), completion.strip("`").replace("⏎", "\n"), *verdicts)
        for gold, completion, *verdicts, _why in cells
    ]


ROWS = table()


def said(right: bool) -> str:
    return "right" if right else "wrong"


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("row", ROWS)
async def test_a_row_of_the_documented_table_is_the_verdict_that_is_given(grader: OpenGrader, row: Row) -> None:
    problem = Problem("p", "?", row.gold)
    if row.family in ("math", "both"):
        assert said(await grader(problem, row.completion) == 1.0) == row.verdict
    if row.family in ("number", "both"):
        assert said(grade(problem, row.completion) == 1.0) == row.verdict


def test_the_documented_table_is_as_long_as_promised_and_begins_with_false_positives() -> None:
    assert len({row[:3] for row in ROWS}) == len(ROWS) >= 120
    assert {row.family for row in ROWS} == {"math", "number", "both"}
    assert {row.verdict for row in ROWS[:90]} == {"wrong"}


def test_the_documented_verdicts_of_math_verify_are_its_own() -> None:
    differing = [
        row
        for row in ROWS
        if row.family != "number" and said(verify(parse(f"${row.gold}$"), parse(row.completion))) != row.math_verify
    ]
    assert differing == []


def test_the_documented_verdicts_of_the_harness_are_its_own() -> None:
    assert [row for row in ROWS if said(harness(row)) != row.harness] == []


def harness(row: Row) -> bool:
    """lm-evaluation-harness: hendrycks_math, given what the last box holds; gsm8k's flexible-extract for numbers."""
    if row.family == "number":
        return flexible_extract(row.gold, row.completion)
    try:
        boxed = hendrycks_math.last_boxed_only_string(row.completion)
        if boxed is not None:
            return bool(hendrycks_math.is_equiv(hendrycks_math.remove_boxed(boxed), row.gold))
    except AssertionError:  # a \\boxed that it does not expect
        return False
    document = {"solution": f"\\boxed{{{row.gold}}}"}
    return bool(hendrycks_math.process_results(document, [row.completion])["exact_match"])


def flexible_extract(gold: str, completion: str) -> bool:
    """The pattern and the texts left out are those of its task file gsm8k.yaml."""
    path = Path(lm_eval.__file__).parent / "tasks/gsm8k/gsm8k.yaml"
    task = yaml.safe_load(path.read_text())
    (rule,) = [step["filter"][0] for step in task["filter_list"] if step["name"] == "flexible-extract"]
    found = ["".join(groups) for groups in re.findall(rule["regex_pattern"], completion)]
    answer = found[rule["group_select"]] if found else "[invalid]"
    for ignored in task["metric_list"][0]["regexes_to_ignore"]:
        answer, gold = re.sub(ignored, "", answer), re.sub(ignored, "", gold)
    return answer.lower() == gold.lower()


# huggingface/Math-Verify#14, #41, #60, #82, hendrycks/math#23
FALSE_POSITIVES = [
    (r"\frac{1}{3^{80}}", r"\frac{1}{3^{79}}"),
    (r"\frac{1}{1900!}", r"\frac{1}{1902!}"),
    (r"\frac{x}{10^{22}}+y", r"\frac{x}{10^{23}}+y"),
    (r"(\frac{1}{3^{80}}, 2)", r"(\frac{1}{3^{79}}, 2)"),
    (r"\{2, \frac{1}{3^{80}}\}", r"\{\frac{1}{3^{79}}, 2\}"),
    (r"[0, 10^{-21}]", r"[0, 10^{-22}]"),
    ("x > 10^{-21}", "x > 10^{-22}"),
    ("y = 10^{-21} x", "y = 10^{-22} x"),
    (r"\begin{pmatrix} 10^{-21} \\\\ 3 \end{pmatrix}", r"\begin{pmatrix} 10^{-22} \\\\ 3 \end{pmatrix}"),
    (r"\sqrt{10^{44}+1}", "10^{22}"),
    ("0.0000003", "0.0000004"),
    ("3e-7", "4e-7"),
    ("0.7654321", "0.7654322"),
    ("10^{-8}", "0"),
    ("0", "0.0000001"),
    (r"8\text{ cm}", r"8\text{ m}"),
    ("8 cm", "8 kg"),
    (r"8\text{ cm}^2", r"8\text{ cm}^3"),
    (r"\$8", r"8\text{ cents}"),
    (r"60^\circ", r"60\text{ radians}"),
    ("61_7", "61_9"),
    ("61_7", "61"),
    ("61", "61_7"),
    ("2A_{16}", "2A_{12}"),
    ("2:3", "4:6"),
    ("2:3", r"\frac{2}{3}"),
    ("9:00", "9"),
    ("0:45", "0"),
    ("7", ".7"),  # the spelling: a leading point was taken for a full stop
    ("63", "6 3"),
    (r"\frac{31}{2}", "3 1/2"),
    ("31/2", "3 1/2"),
    ("0", "0x2F"),
    ("n=3,4,5", "n=2,3,4"),
    (r"\pm 1999", "1999"),
]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("gold", "answer"), FALSE_POSITIVES)
async def test_what_is_close_to_right_is_wrong(grader: OpenGrader, gold: str, answer: str) -> None:
    assert await grader(Problem("p", "?", gold), f"\\boxed{{{answer}}}") == 0.0
    assert await grader(Problem("p", "?", gold), f"\\boxed{{{gold}}}") == 1.0


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (r"\frac{1}{3^{80}}", "3^{-80}"),
        (r"\frac{1}{1900!}", r"\frac{1901}{1901!}"),
        (r"\frac{1}{3}", "0.333333"),
        ("0.333333", "0.3333333"),
        (r"\pi", "3.141593"),
        (r"\sqrt2+\sqrt3", r"\sqrt{5+2\sqrt6}"),
        (r"8\text{ cm}", r"8\text{ centimeters}"),
        (r"8\text{ cm}^2", r"8\text{ square centimeters}"),
        (r"8\text{ cm}", "8"),
        (r"\$8", r"8\text{ dollars}"),
        (r"8\text{ cows}", r"8\text{ animals}"),  # no units known by name: left to math-verify
        ("61_7", "61_{7}"),
        ("61_7", r"61_{\text{seven}}"),
        ("2:3", "2 : 3"),
        (r"\frac{2}{5}", r"40\%"),
        ("40", r"40\%"),
        (r"\frac{7}{2}", "3 1/2"),
        ("3.5", r"3 \frac{1}{2}"),
        ("0.0000003", "3e-7"),
    ],
)
async def test_what_is_equal_stays_equal(grader: OpenGrader, gold: str, answer: str) -> None:
    assert await grader(Problem("p", "?", gold), f"\\boxed{{{answer}}}") == 1.0


# sgl-project/sglang#29933, antirez/ds4#319
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "written",
    [
        r"2\,500\,000",
        "2 500 000",
        "2,500,000",
        "2{,}500{,}000",
        r"2,\!500,\!000",
        r"2\;500\;000",
        r"2\ 500\ 000",
        "2~500~000",
        "2\N{THIN SPACE}500\N{THIN SPACE}000",
        "2\N{NARROW NO-BREAK SPACE}500\N{NARROW NO-BREAK SPACE}000",
        "2'500'000",
        "2.5e6",
    ],
)
async def test_thousands_are_one_number_in_every_spelling(grader: OpenGrader, written: str) -> None:
    for gold, answer in (("2500000", written), (written, "2500000")):
        assert await grader(Problem("p", "?", gold), f"\\boxed{{{answer}}}") == 1.0
        assert parse_number(gold) == final_answer(f"#### {answer}") == 2_500_000
    assert await grader(Problem("p", "?", "2"), f"\\boxed{{{written}}}") == 0.0
