"""Every published gold answer grades as right for itself and as wrong for its neighbour, where the data is."""

import os
from itertools import pairwise
from pathlib import Path

import pytest

from treeopo.problems import grade, load_problem_set, parse_number
from treeopo.problems.graders import open_grader
from treeopo.problems.graders.number import grade_strict
from treeopo.problems.graders.pool import GradingPool
from treeopo.problems.settings import GradingSettings
from treeopo.tasks import gather_or_cancel

DATA = Path(__file__).parents[3] / "shared/data"
GSM8K = Path(os.environ.get("TREEOPO_GSM8K", DATA / "gsm8k"))
MATH = Path(os.environ.get("TREEOPO_MATH500", DATA / "math"))

needs_gsm8k = pytest.mark.skipif(not GSM8K.is_dir(), reason="GSM8K is not here; set TREEOPO_GSM8K to its folder")
needs_math = pytest.mark.skipif(not MATH.is_dir(), reason="MATH-500 is not here; set TREEOPO_MATH500 to its folder")

EQUAL_NEIGHBOURS = {"test-algebra-1837": "its gold is 5, the next one's x=5: an equation for one unknown is its value"}


@needs_gsm8k
@pytest.mark.parametrize(("split", "count"), [("train", 7473), ("test", 1319)])
def test_every_gsm8k_gold_is_right_for_itself_and_for_its_neighbour_only_if_equal(split: str, count: int) -> None:
    problems = load_problem_set(str(GSM8K / f"{split}.jsonl")).problems
    assert len(problems) == len({problem.id for problem in problems}) == count
    for problem, neighbour in pairwise([*problems, problems[0]]):
        assert problem.solution
        assert grade(problem, problem.solution) == grade_strict(problem, problem.solution) == 1.0
        equal = parse_number(problem.answer) == parse_number(neighbour.answer)
        assert grade(problem, neighbour.solution or "") == float(equal)


@needs_math
async def test_every_math500_gold_is_right_for_itself_by_spelling_and_by_algebra() -> None:
    problem_set = load_problem_set(str(MATH / "math500.jsonl"))
    assert problem_set.grader == "math"
    assert len({problem.id for problem in problem_set}) == 500
    settings = GradingSettings(workers=1, deadline_seconds=60)
    async with open_grader("math", settings) as grader:
        assert all([await grader(problem, problem.solution or "") == 1.0 for problem in problem_set])
    pool = GradingPool("math", settings)
    try:
        replies = await gather_or_cancel(pool.grade(problem, f"\\boxed{{{problem.answer}}}") for problem in problem_set)
    finally:
        await pool.close()
    assert [problem.id for problem, reply in zip(problem_set, replies, strict=True) if reply.value != 1.0] == []


@needs_math
async def test_no_math500_gold_is_right_for_its_neighbour_unless_equal() -> None:
    problems = load_problem_set(str(MATH / "math500.jsonl")).problems
    taken = set()
    async with open_grader("math", GradingSettings(workers=1, deadline_seconds=60)) as grader:
        for problem, neighbour in pairwise([*problems, problems[0]]):
            right = await grader(problem, neighbour.solution or "")
            if right and problem.answer != neighbour.answer:
                taken.add(problem.id)
        assert set(grader.take_counts().values()) == {0.0}
    assert taken == set(EQUAL_NEIGHBOURS)
