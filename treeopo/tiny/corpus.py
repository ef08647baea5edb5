"""What the embedded models read: clean solutions for the teacher, systematically misread ones for the student.

A misread step applies another operation than the words say ("doubles them" becomes "+2") and the steps after it go on
from the wrong value, so a misread solution is fluent, and mostly wrong. Sums and products are written in either order,
as people do: it gives the teacher's samples, and so its trees, more than one right way to go on.
"""

import random
from collections.abc import Iterator, Mapping

from treeopo.problems.answers import ANSWER_MARK
from treeopo.problems.problem_set import STEP_SEPARATOR, PromptTemplate
from treeopo.problems.staged_arithmetic import LARGEST, Difficulty, Split, Step, generate

SWAPPED = 0.25  # the share of sums and products written as right operand first

_MISREAD_AS = {"+": "-", "-": "+", "*": "+", "/": "+"}


def clean_texts(difficulty: Difficulty, seed: int) -> Iterator[tuple[str, str]]:
    """An endless stream of (prompt, solution) over the train split, every step right."""
    template, rng = PromptTemplate(), random.Random(f"clean:{seed}")
    for question, steps in generate(difficulty, Split.TRAIN, seed):
        yield template.render(question), _written(steps, rng)


def misread_texts(difficulty: Difficulty, read_right: Mapping[str, float], seed: int) -> Iterator[tuple[str, str]]:
    """The same with each step read right only with the probability that `read_right` gives its operation."""
    template, rng = PromptTemplate(), random.Random(f"misread:{seed}")
    for question, steps in generate(difficulty, Split.TRAIN, seed):
        yield template.render(question), _written(misread(steps, read_right, rng), rng)


def misread(steps: tuple[Step, ...], read_right: Mapping[str, float], rng: random.Random) -> tuple[Step, ...]:
    """`steps` as a careless reader takes them; every value stays within 1..LARGEST."""
    taken: list[Step] = []
    value = steps[0].left
    for step in steps:
        op = step.op if rng.random() < read_right[step.op] else _MISREAD_AS[step.op]
        taken.append(_possible(value, op, step.right))
        value = taken[-1].value
    return tuple(taken)


def _possible(left: int, op: str, right: int) -> Step:
    """The step `left op right`, or a sum or difference in its place where that leaves 1..LARGEST or the integers."""
    step = Step(left, op, right)
    if (op == "/" and left % right) or step.value > LARGEST:
        step = Step(left, "-", right)
    return step if step.value >= 1 else Step(left, "+", right)


def _written(steps: tuple[Step, ...], rng: random.Random) -> str:
    lines = [
        f"{step.right}{step.op}{step.left}={step.value}" if step.op in "+*" and rng.random() < SWAPPED else str(step)
        for step in steps
    ]
    return STEP_SEPARATOR.join([*lines, f"{ANSWER_MARK} {steps[-1].value}"])
