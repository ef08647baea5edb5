"""Problem sets from a function of a user's own, `module:function`; a bad row is one line that names it."""

import sys
from pathlib import Path

import pytest

from treeopo.errors import ProblemError
from treeopo.problems import load_problem_set
from treeopo.problems.graders import load_grader
from treeopo.records import Problem

MODULE = """
from treeopo.problems.graders.number import NumberGrader
from treeopo.records import Problem

def rows():
    for number in range(5):
        yield {"question": f"{number} + 1?", "answer": number + 1}

def splits(split="everything"):
    return [{"id": split, "question": "1 + 1?", "answer": "#### 2", "solution": "count"}]

def records():
    return [Problem("mine", "1 + 1?", "2"), {"question": "2 + 2?", "answer": "4", "id": "other"}]

def bad(row):
    def rows():
        yield {"question": "?", "answer": "1"}
        yield row
    return rows

lacking, texts, nothing = bad({"question": "?"}), bad(["?", "1"]), bad(None)
unreadable = bad({"question": "?", "answer": "one"})
blank, wrong = bad({"question": "?", "answer": "2", "id": ""}), bad(Problem("p", "?", "many"))

def breaks():
    yield {"question": "?", "answer": "1"}
    raise KeyError("no\\nmore")

def number():
    return 7

def two(first, second):
    return []

def empty():
    return []

table = [{"question": "?", "answer": "1"}]

class Colours:
    prompt_ending = "Name a colour."
    def parse_gold(self, text, *, worked):
        if text == "beige":
            raise ValueError("names no colour")
        if text == "loud":
            raise RuntimeError("not a\\ncolour")
        return "" if text == "none" else text.split()[-1].lower()
    def answer(self, text):
        return text
    def grade(self, problem, text):
        return 1.0

def colours():
    return [{"question": "Sky?", "answer": "light BLUE"}]

beige, loud, none = (lambda word=word: [{"question": "Wall?", "answer": word}] for word in ("beige", "loud", "none"))
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_rows.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_rows", raising=False)
    load_grader.cache_clear()


def test_rows_of_a_function_are_problems_in_their_order() -> None:
    problem_set = load_problem_set("own_rows:rows")
    assert [problem.answer for problem in problem_set] == ["1", "2", "3", "4", "5"]
    assert (problem_set.spec, problem_set.grader) == ("own_rows:rows", "number")
    assert len({problem.id for problem in problem_set}) == 5
    assert all(problem.id.startswith("own_rows-rows-") for problem in problem_set)


def test_a_slice_and_a_limit_take_rows_as_of_any_other_set() -> None:
    sliced = load_problem_set("own_rows:rows[1:4]", limit=2)
    assert [problem.answer for problem in sliced] == ["2", "3"]
    assert sliced.spec == "own_rows:rows[1:4]"


def test_a_function_with_a_split_is_asked_for_the_one_of_its_use_or_the_one_named() -> None:
    assert load_problem_set("own_rows:splits").problems == (Problem("train", "1 + 1?", "2", "count"),)
    tested = load_problem_set("own_rows:splits", split="test")
    assert (tested.spec, tested.problems[0].id) == ("own_rows:splits:test", "test")
    assert load_problem_set("own_rows:splits:hard?grader=number-strict[0:1]").spec == (
        "own_rows:splits:hard?grader=number-strict[0:1]"
    )


def test_records_and_mappings_may_be_mixed() -> None:
    assert [problem.id for problem in load_problem_set("own_rows:records")] == ["mine", "other"]


def test_the_grader_named_with_the_set_reads_its_golds() -> None:
    problem_set = load_problem_set("own_rows:colours?grader=own_rows:Colours")
    assert (problem_set.grader, problem_set.problems[0].answer) == ("own_rows:Colours", "blue")
    assert load_problem_set("own_rows:colours", grader="own_rows:Colours").problems == problem_set.problems


def test_a_grader_of_ones_own_reads_the_golds_of_a_file_and_one_that_ships_leaves_published_golds_alone(
    tmp_path: Path,
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "Sky?", "answer": "so it is BLUE"}\n')
    assert load_problem_set(str(path), grader="own_rows:Colours").problems[0].answer == "blue"
    path.write_text('{"question": "1 + 1?", "answer": "1+1=<<1+1=2>>2\\n#### 2"}\n')
    algebra = load_problem_set(str(path), grader="math")
    assert (algebra.grader, algebra.problems[0].answer) == ("math", "2")


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("own_rows:lacking", "own_rows:lacking, row 2: has no `answer`, only `question`"),
        ("own_rows:texts", "own_rows:texts, row 2: is a list of 2, where an object"),
        ("own_rows:nothing", "own_rows:nothing, row 2: is null, where an object"),
        ("own_rows:unreadable", "own_rows:unreadable, row 2: `answer` does not end in one number"),
        ("own_rows:wrong", "own_rows:wrong, row 2: `answer` does not end in one number"),
        ("own_rows:blank", "own_rows:blank, row 2: its id, `id`, is empty"),
        ("own_rows:breaks", "problem set own_rows:breaks: failed after 1 rows (KeyError: "),
        (
            "own_rows:number",
            "problem set own_rows:number: failed after 0 rows (TypeError: 'int' object is not iterable)",
        ),
        ("own_rows:two", "problem set own_rows:two: failed after 0 rows (TypeError: "),
        ("own_rows:table", "problem set own_rows:table: is no function but list"),
        ("own_rows:empty", "own_rows:empty: no problems in it"),
        ("own_rows:absent", "module own_rows has no absent"),
        (
            "gms8k:train",
            "importing gms8k failed (ModuleNotFoundError: No module named 'gms8k'); the sets that ship are",
        ),
        ("own_rows:rows:test", "problem set own_rows:rows: takes no split 'test'; leave it out"),
        ("own_rows:splits:a:b", "'b' does not belong there; give own_rows:splits[:split]"),
        ("own_rows:rows?colour=red", "'colour' does not belong there; a function takes ?grader=NAME"),
        ("own_rows:rows?grader=luck", "unknown grader 'luck'; use one of number, number-strict, math"),
        ("own_rows:beige?grader=own_rows:Colours", "own_rows:beige, row 1: `answer` names no colour; mend or remove"),
        (
            "own_rows:loud?grader=own_rows:Colours",
            "parse_gold of grader own_rows:Colours raised RuntimeError: not a col",
        ),
        ("own_rows:none?grader=own_rows:Colours", "parse_gold of grader own_rows:Colours returned no text but ''"),
    ],
)
def test_what_cannot_be_used_is_one_line_that_names_function_and_row(spec: str, complaint: str) -> None:
    with pytest.raises(ProblemError) as caught:
        load_problem_set(spec)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_of_that_name_comes_first(tmp_path: Path) -> None:
    (tmp_path / "own_rows:rows").write_text('{"question": "?", "answer": "#### 9"}\n')
    assert [problem.answer for problem in load_problem_set("own_rows:rows")] == ["9"]


def test_names_that_ship_come_before_functions(tmp_path: Path) -> None:
    (tmp_path / "math500.py").write_text("def train():\n    return []\n")
    with pytest.raises(ProblemError, match=r"'train' does not belong there; give math500"):
        load_problem_set("math500:train")
