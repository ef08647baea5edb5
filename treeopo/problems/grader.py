"""The port `Grade`, by family: numbers in this process, LaTeX in a pool of others."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from treeopo.ports import Grade
from treeopo.problems.grading import grade, grade_strict
from treeopo.problems.grading_pool import GradingPool
from treeopo.problems.math_answers import math_answer, quick_verdict
from treeopo.problems.settings import Family, GradingSettings
from treeopo.records import Problem


class Grader(Grade, Protocol):
    """`Grade` that says what it cost."""

    def take_counts(self) -> dict[str, float]:
        """`grader_timeouts` and `grader_restarts` since the last call."""


@asynccontextmanager
async def open_grader(family: Family, settings: GradingSettings) -> AsyncIterator[Grader]:
    """The grader of a family; on exit none of its processes is left."""
    match family:
        case Family.NUMBER:
            yield NumberGrader(grade)
        case Family.NUMBER_STRICT:
            yield NumberGrader(grade_strict)
        case Family.MATH:
            pool = GradingPool(settings)
            try:
                yield MathGrader(pool)
            finally:
                await pool.close()


class NumberGrader:
    """Takes microseconds whatever the text, so it may run on the event loop."""

    def __init__(self, grade: Callable[[Problem, str], float]) -> None:
        self._grade = grade

    async def __call__(self, problem: Problem, text: str) -> float:
        return self._grade(problem, text)

    def take_counts(self) -> dict[str, float]:
        return {"grader_timeouts": 0.0, "grader_restarts": 0.0}


class MathGrader:
    """Settles by spelling what it can; the pool gets one bounded answer, never the text."""

    def __init__(self, pool: GradingPool) -> None:
        self._pool = pool
        self._taken = (0, 0)

    async def __call__(self, problem: Problem, text: str) -> float:
        answer = math_answer(text)
        if answer is None:
            return 0.0
        right = quick_verdict(problem.answer, answer)
        return float(await self._pool.verify(problem.answer, answer) if right is None else right)

    def take_counts(self) -> dict[str, float]:
        timeouts, restarts = self._pool.timeouts - self._taken[0], self._pool.restarts - self._taken[1]
        self._taken = (self._pool.timeouts, self._pool.restarts)
        return {"grader_timeouts": float(timeouts), "grader_restarts": float(restarts)}
