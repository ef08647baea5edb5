"""How answers are graded, and what grading may cost."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, get_args

from treeopo.errors import require

OnFailure = Literal["zero", "retry"]


class Family(StrEnum):
    """A rule that finds and compares final answers; every problem set has one (docs/problems.md).

    number: the number after the last `####`, `\\boxed{}` or "answer is". number-strict: after the last `####` alone.
    math: the LaTeX in the last `\\boxed{}` or after the last "answer is", compared by math-verify.
    """

    NUMBER = "number"
    NUMBER_STRICT = "number-strict"
    MATH = "math"


GRADER_KEY = "grader"
"""Where a tree store's search settings name the family of its problems."""


@dataclass(frozen=True, slots=True)
class GradingSettings:
    """family: in the place of the problem set's or the store's own. The rest is for math-verify.

    workers: processes it runs in. deadline_seconds: what one answer may take in a worker that is ready; then the worker
    is killed. memory_mib: address space of a worker. on_failure: an answer whose worker was killed or died is wrong
    (zero), or is tried again in a new worker up to `retries` times (retry); it is counted either way.
    """

    family: Family | None = None
    workers: int = 2
    deadline_seconds: float = 5.0
    memory_mib: int = 2048
    on_failure: OnFailure = "zero"
    retries: int = 2

    def __post_init__(self) -> None:
        require(self.workers >= 1, f"workers is {self.workers}; grading needs at least 1")
        require(
            0 < self.deadline_seconds < float("inf"),
            f"deadline_seconds is {self.deadline_seconds}; give an answer a positive time",
        )
        require(self.memory_mib >= 512, f"memory_mib is {self.memory_mib}; a worker needs 512 to start")
        require(
            self.on_failure in get_args(OnFailure),
            f"on_failure is {self.on_failure!r}; use one of {', '.join(get_args(OnFailure))}",
        )
        require(self.retries >= 1, f"retries is {self.retries}; on_failure retry needs at least 1")

    @property
    def attempts(self) -> int:
        """Workers that one answer may use up."""
        return 1 + self.retries if self.on_failure == "retry" else 1
