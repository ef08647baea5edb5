"""`staged-arithmetic`: word problems of a few one-operation steps, generated from a seed.

    Ava has 12 apples, buys 5, loses 3, doubles them. How many apples now?
    12+5=17 ⏎⏎ 17-3=14 ⏎⏎ 14*2=28 ⏎⏎ #### 28

A problem's split follows from its chain of steps alone, so no chain of the test split, under whatever name or verbs,
is ever in the train split, whatever the seed and whatever the difficulty.
"""

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from treeopo.problems.answers import ANSWER_MARK
from treeopo.problems.problem_set import STEP_SEPARATOR
from treeopo.records import Problem

NAME = "staged-arithmetic"
LARGEST = 99  # every intermediate value stays within 1..LARGEST

_NAMES = ("Ava", "Ben", "Cleo", "Dan", "Eli", "Fay", "Gus", "Hana", "Ivo", "Jo")
_ITEMS = ("apples", "books", "coins", "shells", "cards", "pens")


class Difficulty(StrEnum):
    EASY = "easy"
    SPARSE = "sparse"


class Split(StrEnum):
    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


STEPS = {Difficulty.EASY: (2, 5), Difficulty.SPARSE: (5, 6)}
SIZES = {Split.TRAIN: 5000, Split.VALIDATION: 1000, Split.TEST: 1000}


@dataclass(frozen=True, slots=True)
class Step:
    """One operation: `left op right`, with op one of + - * / and an exact, positive value."""

    left: int
    op: str
    right: int

    @property
    def value(self) -> int:
        match self.op:
            case "+":
                return self.left + self.right
            case "-":
                return self.left - self.right
            case "*":
                return self.left * self.right
            case _:
                return self.left // self.right

    def __str__(self) -> str:
        return f"{self.left}{self.op}{self.right}={self.value}"


def solution_text(steps: tuple[Step, ...]) -> str:
    """The worked solution: the steps, a blank line after each, then `#### answer`."""
    return STEP_SEPARATOR.join([*map(str, steps), f"{ANSWER_MARK} {steps[-1].value}"])


def generate(difficulty: Difficulty, split: Split, seed: int) -> Iterator[tuple[str, tuple[Step, ...]]]:
    """An endless stream of (question, steps) of one split; a function of its arguments alone, with repetitions."""
    rng = random.Random(f"{NAME}:{difficulty}:{split}:{seed}")
    shortest, longest = STEPS[difficulty]
    while True:
        steps = _draw_steps(rng, rng.randint(shortest, longest))
        if _split_of(steps) is split:
            yield _question(rng, steps), steps


def staged_arithmetic(difficulty: Difficulty, split: Split, limit: int) -> list[Problem]:
    """The first `limit` problems of the published set (seed 0), all chains different; at most `SIZES[split]`."""
    distinct: dict[tuple[Step, ...], str] = {}
    for question, steps in generate(difficulty, split, seed=0):
        if len(distinct) == min(limit, SIZES[split]):
            break
        distinct.setdefault(steps, question)
    return [
        Problem(f"{difficulty}-{split}-{number}", question, str(steps[-1].value), solution_text(steps))
        for number, (steps, question) in enumerate(distinct.items())
    ]


def _draw_steps(rng: random.Random, count: int) -> tuple[Step, ...]:
    steps: list[Step] = []
    value = rng.randint(2, 20)
    while len(steps) < count:
        possible = {
            "+": value <= LARGEST - 9,
            "-": value >= 4,
            "*": value <= LARGEST // 3,
            "/": value % 2 == 0 and value > 2,
        }
        op = rng.choice([op for op in possible if possible[op]])
        right = {"+": (2, 9), "-": (2, min(value - 1, 9)), "*": (2, 3), "/": (2, 2)}[op]
        steps.append(Step(value, op, rng.randint(*right)))
        value = steps[-1].value
    return tuple(steps)


def _split_of(steps: tuple[Step, ...]) -> Split:
    bucket = zlib.crc32(";".join(map(str, steps)).encode()) % 10
    return {0: Split.TEST, 1: Split.VALIDATION}.get(bucket, Split.TRAIN)


def _question(rng: random.Random, steps: tuple[Step, ...]) -> str:
    name, items = rng.choice(_NAMES), rng.choice(_ITEMS)
    clauses = [f"{name} has {steps[0].left} {items}", *(_clause(rng, step) for step in steps)]
    return f"{', '.join(clauses)}. How many {items} now?"


def _clause(rng: random.Random, step: Step) -> str:
    match step.op:
        case "+":
            return f"{rng.choice(('buys', 'finds'))} {step.right}"
        case "-":
            return f"{rng.choice(('loses', 'sells'))} {step.right}"
        case "*":
            return "doubles them" if step.right == 2 else "triples them"
        case _:
            return "gives half away"
