"""What the embedded models read: clean steps are right, misread ones are fluent, possible and mostly wrong."""

import random
from dataclasses import replace
from itertools import islice, pairwise
from typing import Any

import pytest

from treeopo.problems import STEP_SEPARATOR, grade, load_problems
from treeopo.problems.staged_arithmetic import LARGEST, Difficulty, Split, generate
from treeopo.records import Problem
from treeopo.tiny.corpus import clean_texts, misread, misread_texts
from treeopo.tiny.recipe import RECIPES


def chains(difficulty: Difficulty, count: int = 500) -> list[Any]:
    return [steps for _, steps in islice(generate(difficulty, Split.TRAIN, seed=9), count)]


def test_every_clean_solution_grades_right() -> None:
    questions = islice(generate(Difficulty.EASY, Split.TRAIN, 5), 200)
    for (prompt, solution), (question, steps) in zip(clean_texts(Difficulty.EASY, 5), questions, strict=False):
        assert question in prompt
        assert grade(Problem("p", question, str(steps[-1].value)), solution) == 1.0


def test_sums_and_products_are_written_in_either_order() -> None:
    first_steps = [solution.split(STEP_SEPARATOR)[0] for _, solution in islice(clean_texts(Difficulty.EASY, 5), 400)]
    assert any(
        step.startswith(("2*", "3*")) and not step.split("*")[1].startswith(("2=", "3=")) for step in first_steps
    )
    assert any(step.split("=")[0].endswith(("*2", "*3")) for step in first_steps)


def test_a_careful_reader_misreads_nothing() -> None:
    for steps in chains(Difficulty.EASY):
        assert misread(steps, dict.fromkeys("+-*/", 1.0), random.Random(0)) == steps


@pytest.mark.parametrize("difficulty", Difficulty)
def test_misread_steps_are_possible_and_follow_from_each_other(difficulty: Difficulty) -> None:
    rng = random.Random(0)
    for steps in chains(difficulty):
        taken = misread(steps, RECIPES[difficulty].read_right_by_op, rng)
        assert len(taken) == len(steps)
        assert taken[0].left == steps[0].left
        assert all(1 <= step.value <= LARGEST for step in taken)
        assert all(step.op != "/" or step.left % step.right == 0 for step in taken)
        assert all(after.left == before.value for before, after in pairwise(taken))


@pytest.mark.parametrize(("difficulty", "low", "high"), [(Difficulty.EASY, 0.2, 0.35), (Difficulty.SPARSE, 0.0, 0.03)])
def test_misread_solutions_are_right_as_seldom_as_the_difficulty_says(
    difficulty: Difficulty, low: float, high: float
) -> None:
    rng, read_right = random.Random(0), RECIPES[difficulty].read_right_by_op
    steps = chains(difficulty, 2000)
    right = sum(misread(chain, read_right, rng)[-1].value == chain[-1].value for chain in steps) / len(steps)
    assert low <= right <= high


@pytest.mark.parametrize("difficulty", Difficulty)
def test_no_training_text_asks_a_held_out_problem(difficulty: Difficulty) -> None:
    held_out = {
        problem.question
        for split in ("validation", "test")
        for problem in load_problems(f"staged-arithmetic:{difficulty}:{split}")
    }
    misread_ones = misread_texts(difficulty, RECIPES[difficulty].read_right_by_op, 2)
    for prompt, _ in [*islice(clean_texts(difficulty, 1), 5000), *islice(misread_ones, 5000)]:
        assert prompt.removeprefix("Question: ").removesuffix("\n\nAnswer:\n\n") not in held_out


def test_every_number_of_a_recipe_is_in_its_key() -> None:
    recipe = RECIPES[Difficulty.EASY]
    others = [
        RECIPES[Difficulty.SPARSE],
        replace(recipe, teacher=replace(recipe.teacher, steps=1)),
        replace(recipe, student=replace(recipe.student, seed=77)),
        replace(recipe, read_right=(1.0, 1.0, 1.0, 1.0)),
        replace(recipe, heads=2),
        replace(recipe, version=recipe.version + 1),
    ]
    assert recipe.key() == replace(recipe).key()
    assert len({other.key() for other in [recipe, *others]}) == len(others) + 1
