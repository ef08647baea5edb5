"""What a solution states as its answer, and what is only a part of it: numbers, boxes, statements."""

import pytest

from treeopo.problems.graders import open_grader
from treeopo.problems.graders.math import MathGrader, math_answer
from treeopo.problems.graders.number import final_answer, parse_number
from treeopo.problems.settings import GradingSettings
from treeopo.records import Problem

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
    ("**6** or **8**", "6, 8", None),
    ("6 and 1/2", None, None),
    ("6 feet 8 inches", None, None),
    ("6 out of 8", None, None),
    ("6 (mod 8)", None, None),
    ("6 sqrt(7)", "6 sqrt(7)", None),
    (r"\begin{pmatrix} 6 \\ 8 \end{pmatrix}", r"\begin{pmatrix} 6 \\ 8 \end{pmatrix}", None),
    ("(n+6)(m+8)", "(n+6)(m+8)", None),
    ("63km/h", "63", 63),
    ("63/hour", "63", 63),
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


# Parts that a reader of the reports above would still take
@pytest.mark.parametrize(
    ("family", "gold", "text"),
    [
        ("number", "0", r"Thus $\boxed{0.\overline{6}}$"),
        ("number", "0", r"#### 0.\overline{6}"),
        ("number", "0", r"The answer is 0.\overline{6}"),
        ("number", "5", r"\boxed{(x, 5)}"),
        ("math", "9", r"\boxed{7 2}"),
        ("math", r"5\text{ m}", r"The answer is 5\text{ cm}"),
        ("math", r"5\text{ m}", r"The answer is 5 \text{cm}^2."),
    ],
)
async def test_a_part_of_what_was_said_is_not_the_answer(family: str, gold: str, text: str) -> None:
    async with open_grader(family, GradingSettings(workers=1, deadline_seconds=60)) as grader:
        assert await grader(Problem("p", "?", gold), text) == 0.0


@pytest.mark.parametrize(
    ("family", "gold", "text"),
    [
        ("number", "72", "#### 72\n\nQuestion: How many?\n\nAnswer: 9"),
        ("number", "72", "So \\boxed{72}.\n\nQuestion: How many?\nAnswer: 9"),
        ("math", "72", "\\boxed{72}\n\nQuestion: How many?\n\nAnswer: 9"),
        ("math", r"\frac{1}{2}", r"\boxed{\frac1 2}"),
        ("math", r"5\text{ m}", r"The answer is 5\text{ m}."),
    ],
)
async def test_the_answer_of_a_question_that_a_base_model_goes_on_with_is_not_this_one_s(
    family: str, gold: str, text: str
) -> None:
    async with open_grader(family, GradingSettings(workers=1, deadline_seconds=60)) as grader:
        assert await grader(Problem("p", "?", gold), text) == 1.0
