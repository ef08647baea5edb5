"""How answers are graded, and what grading may cost."""

from dataclasses import dataclass
from typing import Literal, get_args

from treeopo.errors import require
from treeopo.plugins import is_path

OnFailure = Literal["zero", "retry"]

GRADERS = {
    "number": "treeopo.problems.graders.number:NumberGrader",
    "number-strict": "treeopo.problems.graders.number:StrictNumberGrader",
    "math": "treeopo.problems.graders.math:MathGrader",
    "gsm8k-strict-match": "treeopo.problems.graders.harness:GSM8K_STRICT_MATCH",
    "gsm8k-cot-strict-match": "treeopo.problems.graders.harness:GSM8K_COT_STRICT_MATCH",
    "gsm8k-flexible-extract": "treeopo.problems.graders.harness:GSM8K_FLEXIBLE_EXTRACT",
}
"""The graders that ship (docs/problems.md). Wherever one is named, `package.module:Name` names one of your own."""

DEFAULT_GRADER = "number"

GRADER_KEY = "grader"
"""Where a tree store's search settings name the grader of its problems."""


@dataclass(frozen=True, slots=True)
class GradingSettings:
    """Which grader, and what one answer may cost. All but `grader` concern graders that run in processes of their own:
    `math`, and those that users bring.
    """

    grader: str | None = None
    """The grader, in the place of the problem set's or the store's own: number, number-strict, math, one of
    lm-evaluation-harness' (gsm8k-strict-match, gsm8k-cot-strict-match, gsm8k-flexible-extract), or package.module:Name
    for one of your own.
    """

    workers: int = 2
    """Processes that grade; each has one answer at a time."""

    deadline_seconds: float = 5.0
    """What one answer may take in a worker that is ready; then the worker is killed."""

    memory_mib: int = 2048
    """Address space of a worker, in MiB."""

    on_failure: OnFailure = "zero"
    """An answer whose worker was killed or died is worth 0 (zero), or is tried again in a new worker (retry); it is
    counted either way.
    """

    retries: int = 2
    """How often such an answer is tried again, with on_failure retry."""

    def __post_init__(self) -> None:
        require(
            self.grader is None or self.grader in GRADERS or is_path(self.grader),
            f"grader is {self.grader!r}; use one of {', '.join(GRADERS)}, or package.module:Name for one of your own",
        )
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
