"""The benchmarks by name, from the hub and from files in their published columns; every row is our own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from treeopo.errors import ProblemError
from treeopo.problems import load_problem_set

GSM8K = [
    {"question": f"Ava has {n} pens and buys 2. How many?", "answer": f"{n}+2=<<{n}+2={n + 2}>>{n + 2}\n#### {n + 2}"}
    for n in range(5)
]
GSM_SYMBOLIC = [
    {
        **row,
        "id": 7,
        "instance": n,
        "original_id": 3,
        "original_question": "?",
        "original_answer": "#### 1",
        "canary": "-",
    }
    for n, row in enumerate(GSM8K)
]
MATH = [
    {
        "problem": f"Compute $\\frac{{{n}}}{{2}}$.",
        "level": "Level 1",
        "type": "Prealgebra",
        "solution": f"It is $\\boxed{{1}}$, no, $\\boxed{{\\frac{{{n}}}{{2}}}}$.",
    }
    for n in range(3)
]
MATH_500 = [
    {
        "problem": row["problem"],
        "solution": row["solution"],
        "answer": f"\\frac{{{n}}}{{2}}",
        "subject": "Prealgebra",
        "level": 1,
        "unique_id": f"test/prealgebra/{n}.json",
    }
    for n, row in enumerate(MATH)
]

Hub = Callable[[list[dict[str, Any]]], list[tuple[Any, ...]]]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """Stands in for the hub: notes what is asked for, and has `datasets` itself load the rows from a local file."""
    load = datasets.load_dataset

    def publish(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
        path = tmp_path / "hub.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        asked: list[tuple[Any, ...]] = []

        def load_dataset(repository: str, config: str | None, *, split: str) -> Any:
            asked.append((repository, config, split))
            return load("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return asked

    return publish


@pytest.mark.parametrize(
    ("spec", "rows", "asked"),
    [
        ("gsm8k", GSM8K, [("openai/gsm8k", "main", "train")]),
        ("gsm8k:test", GSM8K, [("openai/gsm8k", "main", "test")]),
        ("gsm-symbolic", GSM_SYMBOLIC, [("apple/GSM-Symbolic", "main", "test")]),
        ("gsm-symbolic:p2", GSM_SYMBOLIC, [("apple/GSM-Symbolic", "p2", "test")]),
        ("math:geometry:train", MATH, [("EleutherAI/hendrycks_math", "geometry", "train")]),
        ("math500", MATH_500, [("HuggingFaceH4/MATH-500", None, "test")]),
    ],
)
def test_a_name_asks_the_hub_for_the_right_repository_configuration_and_split(
    hub: Hub, spec: str, rows: list[dict[str, Any]], asked: list[tuple[Any, ...]]
) -> None:
    seen = hub(rows)
    load_problem_set(spec)
    assert seen == asked


def test_math_is_the_seven_subjects_that_can_be_asked_for_by_name(hub: Hub) -> None:
    with pytest.raises(ProblemError, match=r"give math\[:[a-z_|]+\]\[:train\|test\]") as refused:
        load_problem_set("math:topology")
    subjects = str(refused.value).partition("math[:")[2].partition("]")[0].split("|")
    assert len(subjects) == 7
    asked = hub(MATH)
    for subject in subjects:
        load_problem_set(f"math:{subject}:test")
    one_by_one = asked.copy()
    asked.clear()
    load_problem_set("math:test")
    assert asked == one_by_one


def test_gsm8k_is_graded_by_number_and_its_ids_are_of_its_questions(hub: Hub) -> None:
    hub(GSM8K)
    problems = load_problem_set("gsm8k:train[1:3]")
    assert problems.spec == "gsm8k:train[1:3]"
    assert problems.grader == "number"
    assert [problem.answer for problem in problems] == ["3", "4"]
    assert problems.problems[0].solution == "1+2=3\n\n#### 3"
    hub(GSM8K[::-1])
    again = load_problem_set("gsm8k:train")
    assert {problem.id for problem in problems} < {problem.id for problem in again}


def test_a_spec_without_split_takes_the_one_of_its_use_and_says_so(hub: Hub) -> None:
    seen = hub(GSM8K)
    assert load_problem_set("gsm8k").spec == "gsm8k:train"
    assert load_problem_set("gsm8k[:2]", split="test").spec == "gsm8k:test[:2]"
    assert [split for _, _, split in seen] == ["train", "test"]
    assert load_problem_set("staged-arithmetic", 1, split="test").spec == "staged-arithmetic:easy:test"


def test_gsm_symbolic_ids_are_template_and_instance(hub: Hub) -> None:
    hub(GSM_SYMBOLIC)
    problems = load_problem_set("gsm-symbolic:p1", 2)
    assert [problem.id for problem in problems] == ["gsm-symbolic-p1-7-0", "gsm-symbolic-p1-7-1"]
    assert problems.grader == "number"


def test_math_gold_is_what_the_last_box_of_the_solution_holds(hub: Hub) -> None:
    hub(MATH)
    problems = load_problem_set("math:algebra:train")
    assert problems.grader == "math"
    assert [problem.answer for problem in problems] == [r"\frac{0}{2}", r"\frac{1}{2}", r"\frac{2}{2}"]


def test_math500_keeps_its_published_ids_and_answers(hub: Hub) -> None:
    hub(MATH_500)
    problems = load_problem_set("math500", split="train")
    assert problems.spec == "math500:test"
    assert [problem.id for problem in problems][:1] == ["test/prealgebra/0.json"]
    assert problems.problems[1].answer == r"\frac{1}{2}"


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("rows", "grader", "first_id"),
    [
        (GSM_SYMBOLIC, "number", "set-7-0"),
        (MATH, "math", None),
        (MATH_500, "math", "test/prealgebra/0.json"),
    ],
)
def test_a_file_in_published_columns_is_recognised(
    tmp_path: Path, rows: list[dict[str, Any]], grader: str, first_id: str | None
) -> None:
    problems = load_problem_set(f"{write(tmp_path / 'set.jsonl', rows)}[:2]")
    assert len(problems) == 2
    assert problems.grader == grader
    assert first_id in (None, problems.problems[0].id)


def test_parquet_and_json_lines_of_the_same_rows_are_the_same_problems(tmp_path: Path) -> None:
    lines = write(tmp_path / "set.jsonl", MATH_500)
    datasets.Dataset.from_list(MATH_500).to_parquet(tmp_path / "set.parquet")
    assert load_problem_set(str(lines)).problems == load_problem_set(str(tmp_path / "set.parquet")).problems


def test_columns_by_name_take_any_file(tmp_path: Path) -> None:
    rows = [
        {"q": "2+2?", "a": 4, "why": "count", "n": 11},
        {"q": "half?", "a": 0.5, "why": "cut", "n": 12},
        {"q": "so?", "a": "well #### 7", "why": "luck", "n": 13},
    ]
    path = write(tmp_path / "own.jsonl", rows)
    problems = load_problem_set(f"{path}?question=q&answer=a&solution=why&id=n")
    assert [(problem.id, problem.answer, problem.solution) for problem in problems] == [
        ("11", "4", "count"),
        ("12", "0.5", "cut"),
        ("13", "7", "luck"),
    ]
    latex = load_problem_set(f"{write(path, [{'q': 'x', 'a': 'x^2'}])}?question=q&answer=a&grader=math[0:]")
    assert (latex.grader, latex.problems[0].answer) == ("math", "x^2")


@pytest.mark.parametrize(
    ("rows", "query", "complaint"),
    [
        ([{"q": "?", "a": "1"}, {"q": "?"}], "?question=q&answer=a", ":2: has no `a`, only `q`"),
        ([{"q": "?", "a": "one"}], "?question=q&answer=a", ":1: `a` does not end in one number"),
        ([{"q": "?", "a": "1"}], "?question=q&answer=a&id=n", ":1: its id, `n`, is empty"),
        ([{"q": "?", "a": "1"}], "?question=q", "name columns as"),
        ([{"q": "?", "a": "1"}], "?question=q&answer=a&colour=c", "name columns as"),
        (
            [{"q": "?", "a": "1"}],
            "?question=q&answer=a&grader=luck",
            "unknown grader 'luck'; use one of number, number-strict, math",
        ),
        ([{"problem": "?", "solution": "so 1"}], "", ":1: `solution` does not end in a closed \\boxed{}"),
        ([{"problem": "?", "solution": "\\boxed{1"}], "", ":1: `solution` does not end in a closed \\boxed{}"),
        ([{"question": "?", "answer": "#### 1"}], "[5:]", "no problems in it"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, rows: list[dict[str, Any]], query: str, complaint: str) -> None:
    path = write(tmp_path / "set.jsonl", rows)
    with pytest.raises(ProblemError) as caught:
        load_problem_set(f"{path}{query}")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bad_row_of_parquet_and_of_the_hub_is_named_too(tmp_path: Path, hub: Hub) -> None:
    rows = [*GSM8K, {"question": "?", "answer": "none"}]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "set.parquet")
    with pytest.raises(ProblemError, match=r"set\.parquet, row 6: `answer` does not end in"):
        load_problem_set(str(tmp_path / "set.parquet"))
    hub(rows)
    with pytest.raises(ProblemError, match=r"openai/gsm8k main test, row 6: `answer` does not end in"):
        load_problem_set("gsm8k:test")


def test_a_file_that_is_not_parquet_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "set.parquet").write_text("no")
    with pytest.raises(ProblemError, match=r"set\.parquet: is no Parquet file"):
        load_problem_set(str(tmp_path / "set.parquet"))


@pytest.mark.parametrize(
    "spec",
    ["gsm8k:validation", "gsm-symbolic:train", "gsm-symbolic:p3", "math:topology", "math500:train", "gsm8k:test:1"],
)
def test_a_split_or_variant_that_was_not_published_is_refused_with_those_that_were(spec: str) -> None:
    with pytest.raises(ProblemError, match=r"does not belong there; give g|does not belong there; give m"):
        load_problem_set(spec)


@pytest.mark.parametrize(
    "error",
    [ConnectionError("Couldn't reach it\nmore"), ValueError("no such config"), datasets.exceptions.DatasetsError("?")],
)
def test_an_unreachable_hub_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def load_dataset(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        ProblemError, match="openai/gsm8k main train: cannot be loaded from the Hugging Face hub"
    ) as caught:
        load_problem_set("gsm8k")
    assert "\n" not in str(caught.value)
