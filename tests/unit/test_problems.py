"""Problem sets by name and by file; the refusals name file and line."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from treeopo.errors import ConfigError, ProblemError
from treeopo.problems import STEP_SEPARATOR, PromptTemplate, grade, load_problem_set, load_problems

ROW = {"question": "How many?", "answer": "2+2 = <<2+2=4>>4 pens.\nSo 4.\n#### 4"}


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_the_published_set_does_not_change() -> None:
    first = load_problems("staged-arithmetic", limit=1)[0]
    assert first.id == "easy-train-0"
    assert first.question.startswith("Ben has 12 cards, gives half away, doubles them, loses 6, doubles them.")
    assert first.solution == "12/2=6\n\n6*2=12\n\n12-6=6\n\n6*2=12\n\n#### 12"


def test_names_default_to_easy_and_train() -> None:
    assert load_problems("staged-arithmetic", 3) == load_problems("staged-arithmetic:easy:train", 3)
    assert load_problems("staged-arithmetic:test", 3) == load_problems("staged-arithmetic:easy:test", 3)
    assert load_problems("staged-arithmetic:sparse", 3) == load_problems("staged-arithmetic:sparse:train", 3)


def test_a_limit_keeps_the_head_of_the_same_list() -> None:
    assert load_problems("staged-arithmetic:test", 5) == load_problems("staged-arithmetic:test", 50)[:5]
    assert len(load_problems("staged-arithmetic:test", 10**6)) == 1000


@pytest.mark.parametrize(
    "spec", ["staged-arithmetic:hard", "staged-arithmetic:test:easy", "staged-arithmetic:easy:test:1", "nowhere.jsonl"]
)
def test_an_unknown_name_is_refused_with_the_grammar(spec: str) -> None:
    with pytest.raises(ProblemError, match=re.escape("staged-arithmetic[:easy|sparse][:train|validation|test]")):
        load_problems(spec)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(limit: int) -> None:
    with pytest.raises(ProblemError, match="at least one"):
        load_problems("staged-arithmetic", limit)


def test_a_gsm8k_row_becomes_steps_without_calculator_marks(tmp_path: Path) -> None:
    (problem,) = load_problems(str(write(tmp_path / "train.jsonl", ROW)))
    assert problem.answer == "4"
    assert problem.solution == "2+2 = 4 pens.\n\nSo 4.\n\n#### 4"
    assert grade(problem, problem.solution) == 1.0


def test_gsm8k_ids_survive_reordering_and_stay_unique(tmp_path: Path) -> None:
    other = ROW | {"question": "How much?"}
    one = load_problems(str(write(tmp_path / "a.jsonl", ROW, other)))
    two = load_problems(str(write(tmp_path / "a.jsonl", other, ROW, ROW)))
    assert one[0].id == two[1].id
    assert len({problem.id for problem in two}) == 3


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("{", "not a line of JSON"),
        ("[" * 10**5, "not a line of JSON"),
        ("[]", "`question` and `answer`"),
        ({"question": "?"}, "`question` and `answer`"),
        ({"question": " ", "answer": "#### 4"}, "`question` is empty"),
        ({"question": "?", "answer": 4}, "`answer` is the number 4, and not a worked solution"),
        ({"question": "?", "answer": "4"}, "#### number"),
        ({"question": "?", "answer": "#### four"}, "#### number"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, row: object, complaint: str) -> None:
    path = write(tmp_path / "bad.jsonl", ROW, "", row)
    with pytest.raises(ProblemError, match=re.escape(f"{path}:3: ")) as caught:
        load_problems(str(path))
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rows_past_the_limit_are_not_judged(tmp_path: Path) -> None:
    assert len(load_problems(str(write(tmp_path / "some.jsonl", ROW, "{")), limit=1)) == 1


def test_bytes_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bytes.jsonl"
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(ProblemError, match=":1: not a line of JSON"):
        load_problems(str(path))


def test_an_empty_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match="no problems in it"):
        load_problems(str(write(tmp_path / "empty.jsonl", "")))
    with pytest.raises(ProblemError, match="no problem set or file"):
        load_problems(str(tmp_path))


def test_a_root_prompt_ends_in_the_step_separator() -> None:
    problems = load_problem_set("staged-arithmetic:test", 1)
    (problem,) = problems
    assert problems.prompt(problem) == f"Question: {problem.question}\n\nAnswer:\n\n"
    assert problems.prompt(problem).endswith(STEP_SEPARATOR)


def test_braces_in_question_or_template_are_text() -> None:
    assert PromptTemplate("{x} {question}\n\n").render("{y}") == "{x} {y}\n\n"


@pytest.mark.parametrize("text", ["no question\n\n", "{question}{question}\n\n", "{question}\n"])
def test_a_template_that_cannot_start_a_tree_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"name \{question\} once and end in a blank line"):
        PromptTemplate(text)


def test_problems_load_without_torch_or_a_tokenizer() -> None:
    heavy = "{'torch', 'transformers', 'tokenizers', 'vllm', 'zarr', 'asyncio'}"
    code = f"import sys, treeopo.problems; print(*({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
