"""What a solution states as its answer, and what is only a part of it: numbers, boxes, statements, golds.

The rows of docs/problems.md's table of verdicts are the cases of the first test; what follows says why, kind by kind.
"""

import json
import re
from collections.abc import AsyncIterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import lm_eval
import pytest
import pytest_asyncio
import yaml
from lm_eval.tasks.hendrycks_math import utils as hendrycks_math
from math_verify import parse, verify
from treeopo_storage import open_store

from tests.killed_run import new_run, prepare
from tests.tiny_models import byte_tokenizer
from tests.unit.test_training_start import StudentsEngine
from treeopo.config import BuildConfig, EvalConfig
from treeopo.engines.scripted import ScriptedEngine
from treeopo.engines.settings import Adapters, EngineOptions
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.errors import GraderError, ProblemError
from treeopo.jobs.build import build_store
from treeopo.jobs.evaluate import evaluate
from treeopo.jobs.train import train
from treeopo.problems import grade, load_problems
from treeopo.problems.graders import OpenGrader, open_grader, unreadable_golds
from treeopo.problems.graders.math import MathGrader, math_answer
from treeopo.problems.graders.number import final_answer, parse_number
from treeopo.problems.settings import GradingSettings
from treeopo.records import Problem
from treeopo.trackers import read_metrics


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


# (after "The answer is", read by `math`, read by `number`); None: no answer.
# huggingface/Math-Verify#60, hendrycks/math#23, EleutherAI/lm-evaluation-harness#3477
STATEMENTS = [
    (r"6\sqrt{7}", r"6\sqrt{7}", None),
    (r"9\pi", r"9\pi", None),
    ("4:7", "4:7", None),
    ("2 + 9i", "2 + 9i", None),
    ("4n+3", "4n+3", None),
    ("8-y", "8-y", None),
    ("6n", "6n", None),
    ("7!", "7!", None),
    ("61_7", "61_7", None),
    ("9:45", "9:45", None),
    ("2^{11}", "2^{11}", None),
    ("0x1F", "0x1F", None),
    ("2_500", "2_500", None),
    ("2.6M", "2.6M", None),
    ("3 million", None, None),
    ("0.666...", None, None),
    ("6√2", "6√2", None),
    (r"1 \le y \le 6", r"1 \le y \le 6", None),
    ("9 - 5 = 4", "9 - 5 = 4", None),
    ("6 or 8.", "6, 8", None),
    ("6, 8 and 9", "6, 8, 9", None),
    ("$6$ and $8$", "6,8", None),
    (r"\(6\) or \(8\)", "6,8", None),
    ("$4$:$7$", "4:7", None),
    ("$y = 6$ and $z = 8$", "y = 6,z = 8", None),
    (r"$6$\%", r"6\%", 6),
    (r"6\%", r"6\%", 6),
    ("3e4", "3e4", 30_000),
    (r"2 \frac{1}{4}", "2 1/4", parse_number("9/4")),
    ("2{,}500", "2,500", 2500),
    ("2 500 000", "2 500 000", 2_500_000),
    ("2,500", "2,500", 2500),
    ("63, in all", "63", 63),
    ("63 eggs", "63", 63),
    ("63 a week", "63", 63),
    ("63cm", "63", 63),
    ("63.", "63", 63),
    ("(63)", "63", 63),
    ("**63**", "63", 63),
    (r"\[63\]", "63", 63),
    (r"\$63$", "63", 63),
    ("$63 a week", "63", 63),
    ("63<|im_end|>", "63", 63),
    ("not clear to me", None, None),
]


@pytest.mark.parametrize(("stated", "latex", "number"), STATEMENTS)
def test_a_statement_is_read_whole_or_not_at_all(stated: str, latex: str | None, number: object) -> None:
    assert math_answer(f"The answer is {stated}") == latex
    assert final_answer(f"The answer is {stated}") == number


@pytest.mark.parametrize(("stated", "_", "number"), STATEMENTS)
@pytest.mark.parametrize("convention", ["#### {}", "\\boxed{{{}}}"])
def test_a_mark_and_a_box_hold_a_number_alone_or_none(stated: str, _: object, number: object, convention: str) -> None:
    assert final_answer(convention.format(stated)) == number


@pytest.mark.parametrize(
    "text",
    [
        r"\sqrt{49}",
        "f(7)",
        "x - 7",
        r"\pi/7",
        "x > 7",
        "y^7",
        "not 7",
        "negative 7",
        r"\log 7",
        "7 plus 2",
        "5 7",
        "x7",
    ],
)
def test_the_only_number_of_a_line_is_read_only_where_nothing_before_it_belongs_to_it(text: str) -> None:
    assert parse_number(text) is None


@pytest.mark.parametrize("text", ["so she has 7 hens", "x = 7", "Total: 7", "US$7", "about 7", "**7**", "#7"])
def test_words_and_signs_around_the_only_number_of_a_line_leave_it_as_it_is(text: str) -> None:
    assert parse_number(text) == 7


# jundot/omlx#3484, THUDM/slime#543 and #2150, lm-evaluation-harness#3643, stanford-crfm/helm#4337, Math-Verify#76
@pytest.mark.parametrize(
    "after",
    [
        r" It stands in \boxed{} as asked.",
        r" Written as \boxed{...}, as asked.",
        r" (The format is \boxed{\ldots}.)",
        r" I used \boxed to show it.",
        r" That is the `\boxed{answer}` you wanted.",
        r" \boxed{\text{your answer}}",
        r" \fbox{ }",
    ],
)
def test_a_box_that_says_nothing_does_not_erase_the_answer_before_it(after: str) -> None:
    text = r"Hence \boxed{63}." + after
    assert (math_answer(text), final_answer(text)) == ("63", 63)


def test_a_mark_that_is_only_spoken_of_does_not_erase_the_answer_before_it() -> None:
    assert final_answer("#### 63\nI put it after #### as you asked.") == 63
    assert final_answer("#### 63\n\n####") == 63
    assert final_answer("#### 63\n#### sixty-four") is None  # an answer, only not one that is read


def test_a_box_that_is_never_closed_is_an_answer_that_cannot_be_read() -> None:
    assert math_answer(r"\boxed{63} and \boxed{64") is None


# huggingface/Math-Verify#47, lm-evaluation-harness#3652, #3644, #3785, NVIDIA-NeMo/Skills#41
@pytest.mark.parametrize(
    ("text", "latex"),
    [
        (r"\boxed{2}, \boxed{6} and \boxed{9}", "2, 6, 9"),
        (r"$\boxed{2}$ or $\boxed{6}$.", "2, 6"),
        (r"\(\boxed{2}\); \(\boxed{6}\)", "2, 6"),
        (r"\boxed{x=2}\text{ or }\boxed{x=-6}", "x=2, x=-6"),
        (r"\boxed{2 \frac{1}{4}}, or \boxed{\frac{9}{4}}", r"\frac{9}{4}"),  # one number, twice
        (r"\boxed{2} \boxed{6}", "6"),
        (r"\boxed{2}. No: \boxed{6}", "6"),
        (r"First \boxed{2}, then \boxed{6}", "6"),
        (r"\boxed{06}, that is \boxed{6}", "6"),
        (r"\boxed{2, \boxed{6}}", "2, 6"),
    ],
)
def test_boxes_of_one_list_are_one_answer_and_others_are_answers_of_which_the_last_counts(
    text: str, latex: str
) -> None:
    assert math_answer(text) == latex
    assert MathGrader().parse_gold(text, worked=True) == latex
    number = parse_number(latex)
    assert final_answer(text) == number


@pytest.mark.parametrize(
    "text",
    [
        "**Final Answer: 63**",
        "**Answer:** 63.",
        "Final answer: $63$",
        "The answer: 63",
        "ANSWER: 63",
        "**Final Answer:**\n\n63",
        "**Final Answer**\n\n$\\boxed{63}$",
        "The answers are: $63$.",
        "The final answer is:\n\n\\[\n63\n\\]",
        r"\fbox{63}",
    ],
)
def test_the_ways_chat_models_end_in_are_statements_in_both_families(text: str) -> None:
    assert (math_answer(text), final_answer(text)) == ("63", 63)


@pytest.mark.parametrize(
    "text",
    [
        "Answer:\n\n63 eggs are laid a day.",  # the head of a solution, not its end
        "Answer: 63 eggs and 5 more",
        "We may check our answer: 9 * 7 = 63",
        "the answer isn't 63",
    ],
)
def test_the_head_of_a_solution_and_prose_are_no_statements(text: str) -> None:
    assert math_answer(f"\\boxed{{7}}\n{text}") == "7"
    assert final_answer(f"#### 7\n{text}") == 7


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


def rows(path: Path, golds: list[object]) -> Path:
    path.write_text("".join(json.dumps({"q": f"Number {n}?", "a": gold}) + "\n" for n, gold in enumerate(golds)))
    return path


# zhentingqi/rStar (SVAMP's golds)
@pytest.mark.parametrize(
    ("gold", "number"),
    [
        (63.0, 63),
        (1e16, 10**16),
        (2.5e-7, Fraction(1, 4_000_000)),
        (-0.0, 0),
        (0, 0),
        (0.1, Fraction(1, 10)),
        ("90,000", 90_000),
        ("2 1/4", Fraction(9, 4)),
        ("1e+20", 10**20),
    ],
)
@pytest.mark.parametrize("family", ["number", "math"])
async def test_golds_as_json_has_numbers_are_read(tmp_path: Path, gold: object, number: object, family: str) -> None:
    path = rows(tmp_path / "p.jsonl", [gold])
    (problem,) = load_problems(f"{path}?question=q&answer=a&grader={family}")
    assert parse_number(problem.answer) == number
    plain = f"{Decimal(str(gold)):f}" if isinstance(gold, float) else str(number)
    async with open_grader(family, GradingSettings(workers=1, deadline_seconds=60)) as grader:
        assert await grader(problem, f"\\boxed{{{plain}}}") == 1.0
        assert await grader(problem, f"\\boxed{{{plain}1}}") == 0.0


@pytest.mark.parametrize(
    ("gold", "complaint"),
    [
        (True, r"p.jsonl:1: `a` is true; give a text or a number"),
        (None, r"p.jsonl:1: `a` is null; give a text or a number"),
        ([63], r"`a` is a list of 1; give a text or a number"),
        (float("nan"), r"`a` is NaN; give a finite number"),
        ("", r"`a` is empty"),
        ("sixty", r"`a` does not end in one number"),
    ],
)
def test_what_is_no_gold_is_refused_in_words_that_fit(tmp_path: Path, gold: object, complaint: str) -> None:
    path = rows(tmp_path / "p.jsonl", [gold])
    with pytest.raises(ProblemError, match=complaint):
        load_problems(f"{path}?question=q&answer=a")


def test_a_number_where_a_worked_solution_is_expected_is_the_answer_itself(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"question": "?", "answer": 63.0}\n')
    for spec in (str(path), f"{path}?question=question&answer=answer"):
        assert load_problems(spec)[0].answer == "63"


# openai/openai-cookbook#335, huggingface/open-r1#293, #566
GOLDS = [
    "63",
    r"\frac{2}{7}",
    r"\sqrt{7}",
    r"\frac{",
    "}{",
    r"\begin{cases}1",
    "??",
    r"\text{see the picture}",
    "x" * 600,
]
UNREADABLE = {"math": 5, "number": 7}


@pytest.mark.parametrize("family", ["math", "number"])
async def test_golds_that_a_grader_cannot_read_are_told_in_one_line_and_never_give_1(family: str) -> None:
    notices: list[str] = []
    settings = GradingSettings(workers=1, deadline_seconds=60)
    unreadable = await unreadable_golds(family, settings, GOLDS, notices.append)
    assert len(unreadable) == UNREADABLE[family]
    (notice,) = notices
    assert notice.startswith(f"{UNREADABLE[family]} of 9 golds cannot be read by the grader {family}, the first is ")
    assert "\n" not in notice
    async with open_grader(family, settings, unreadable=unreadable) as grader:
        for gold in unreadable:
            for answer in (gold, "7", ""):
                assert await grader(Problem("p", "?", gold), f"\\boxed{{{answer}}}") == 0.0
        assert await grader(Problem("p", "?", "63"), r"\boxed{63}") == 1.0
        assert grader.take_counts()["grader/unreadable_golds"] == UNREADABLE[family]


async def test_a_set_of_readable_golds_is_not_spoken_of() -> None:
    notices: list[str] = []
    assert await unreadable_golds("number", GradingSettings(), ["63", "2 1/4"], notices.append) == {}
    assert notices == []


GRADERS = """
class Words:
    prompt_ending = "Say it."
    def parse_gold(self, text, *, worked):
        return text
    def answer(self, text):
        return text
    def grade(self, problem, text):
        return 1.0

class Readers(Words):
    def reads(self, gold):
        return gold.isalpha() if gold != "raise" else 1 / 0
"""


async def test_a_grader_of_ones_own_may_say_which_golds_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "words_graders.py").write_text(GRADERS)
    monkeypatch.syspath_prepend(tmp_path)
    settings = GradingSettings(workers=1, deadline_seconds=60)
    notices: list[str] = []
    assert not await unreadable_golds("words_graders:Words", settings, ["7"], notices.append)
    assert await unreadable_golds("words_graders:Readers", settings, ["seven", "7"], notices.append) == {"7": 1}
    assert notices[0].startswith("1 of 2 golds cannot be read by the grader words_graders:Readers, the first is '7'")
    with pytest.raises(GraderError, match=r"reads failed on 'raise': it raised ZeroDivisionError"):
        await unreadable_golds("words_graders:Readers", settings, ["raise"], notices.append)


def test_a_build_and_an_evaluation_tell_of_golds_before_an_engine_starts(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path / "model")
    problems = tmp_path / "p.jsonl"
    row = {"problem": "?", "solution": "so", "unique_id": "0", "answer": "63"}
    problems.write_text(json.dumps(row) + "\n" + json.dumps({**row, "unique_id": "1", "answer": r"\sqrt{7}"}) + "\n")
    told: list[str] = []

    async def start_engine(model: str, options: EngineOptions, adapters: Adapters | None) -> ScriptedEngine:
        told.append("engine")
        return ScriptedEngine(lambda prompt, rng, version: [("#### 63", -1.0)], ModelTokenizer(model))

    common = {"problems": str(problems), "grading": {"grader": "number"}}
    build = BuildConfig.model_validate(
        {**common, "output": tmp_path / "t.zarr", "teacher": str(tmp_path / "model"), "search": {"rollouts": 2}}
    )
    build_store(build, told.append, lambda *_: None, start_engine)
    assert open_store(tmp_path / "t.zarr").answers() == ["63", r"\sqrt{7}"]
    model = tmp_path / "model"
    (model / "config.json").write_text('{"model_type": "llama"}')
    evaluating = EvalConfig.model_validate({**common, "model": str(model), "problems": [str(problems)], "samples": 0})
    (result,) = evaluate(evaluating, told.append, lambda *_: None, start_engine)
    line = "1 of 2 golds cannot be read by the grader number, the first is '\\\\sqrt{7}'"
    lines = [notice for notice in told if notice == "engine" or notice.startswith(line)]
    assert [notice == "engine" for notice in lines] == [False, True, False, True]
    assert result.scores[0].grader_unreadable_golds == 1
    assert result.scores[0].greedy.estimate == 0.5


def test_a_training_run_tells_of_golds_at_its_start_and_counts_them_in_each_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path)
    (tmp_path / "words_graders.py").write_text(GRADERS)
    monkeypatch.syspath_prepend(tmp_path)
    run = new_run(tmp_path, "run", steps=1, **{"grading.grader": "words_graders:Readers", "grading.workers": 1})
    told: list[str] = []

    async def start_engine(model: str, options: EngineOptions, adapters: Adapters | None) -> ScriptedEngine:
        told.append("engine")
        return StudentsEngine(model, 1.0)

    train(run, told.append, lambda step, metrics: None, start_engine)
    golds = next(row for row, line in enumerate(told) if line.startswith("6 of 6 golds cannot be read by the grader "))
    assert golds < told.index("engine")
    (step,) = read_metrics(run.metrics)
    assert (step["grader/unreadable_golds"], step["rollout/reward"]) == (6, 0)
