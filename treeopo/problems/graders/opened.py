"""A grader at work: the port `Grade`. What takes microseconds is settled here, the rest in a pool of processes.

quick ─▶ a verdict ─▶ reward                                           (graders that have `quick`)
   └───▶ None ─▶ a worker process: reward, an error (0, counted), or the deadline (0, counted, SIGKILL)
"""

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, assert_never

from treeopo.errors import ConfigError, GraderError, described
from treeopo.problems.graders.base import as_reward, has_quick, load_grader
from treeopo.problems.settings import GRADERS, GradingSettings
from treeopo.records import Problem

if TYPE_CHECKING:
    from treeopo.problems.graders.pool import GradingPool, Reply

_log = logging.getLogger(__name__)

FAILURES_IN_A_ROW = 32
"""A user's grader that fails so often without one reward between ends the run."""


@asynccontextmanager
async def open_grader(
    name: str,
    settings: GradingSettings,
    binary_for: str | None = None,
    unreadable: Mapping[str, int] | None = None,
) -> AsyncIterator["OpenGrader"]:
    """The grader called `name`, ready to be awaited; on exit none of its processes is left.

    unreadable: golds that the grader cannot read (`graders.golds`): answers to them are worth 0.
    binary_for: what needs rewards of 0 or 1 ("advantage.method optimistic"), so that any other is refused by that name.

    Raises:
        ConfigError: there is no such grader, or it lacks something.
    """
    from treeopo.problems.graders.pool import GradingPool  # asyncio: not before it is needed

    load_grader(name)
    pool = GradingPool(name, settings)
    try:
        yield OpenGrader(name, settings, pool, binary_for, unreadable)
    finally:
        await pool.close()


class OpenGrader:
    """`Grade`, and the canonical answer, of one grader; neither hangs, and what went wrong is counted."""

    def __init__(
        self,
        name: str,
        settings: GradingSettings,
        pool: "GradingPool",
        binary_for: str | None = None,
        unreadable: Mapping[str, int] | None = None,
    ) -> None:
        self._name = name
        self._grader = load_grader(name)
        self._deadline = settings.deadline_seconds
        self._pool = pool
        self._binary_for = binary_for
        self._unreadable = unreadable or {}
        self._ships = name in GRADERS
        self._quick = getattr(self._grader, "quick", None) if has_quick(self._grader) else None
        self._errors = 0
        self._failures_in_a_row = 0
        self._warned = False
        self._taken = self._counted()

    async def __call__(self, problem: Problem, text: str) -> float:
        """The reward of a finished solution, in [0, 1]; 0 where the grader failed, hung or died, or cannot read the
        gold.

        Raises:
            GraderError: no worker can be started, or a user's grader fails again and again.
            ConfigError: the reward is neither 0 nor 1, and something needs that.
        """
        if problem.answer in self._unreadable:
            return 0.0
        reward = self._settled(problem, text) if self._quick is not None else None
        if reward is None:
            reward = float(self._value(await self._pool.grade(problem, text), 0.0))
        if self._binary_for is not None and reward not in (0.0, 1.0):
            raise ConfigError(
                f"reward {reward:g} of grader {self._name}: {self._binary_for} needs rewards of 0 or 1; choose another "
                "of the one or the other"
            )
        return reward

    async def answer(self, text: str) -> str:
        """The final answer in `text` in canonical form, by which answers are counted; empty: none, or a failure.

        Raises:
            GraderError: as above.
        """
        if self._ships:  # searches of a bounded tail
            return self._grader.answer(text)
        return str(self._value(await self._pool.answer(text), ""))

    def take_counts(self) -> dict[str, float]:
        """`grader/timeouts`, `grader/restarts` and `grader/errors` since the last call; `grader/unreadable_golds`."""
        counted, before = self._counted(), self._taken
        self._taken = counted
        since = {name: float(counted[name] - before[name]) for name in counted}
        return {**since, "grader/unreadable_golds": float(sum(self._unreadable.values()))}

    def _counted(self) -> dict[str, int]:
        return {
            "grader/timeouts": self._pool.timeouts,
            "grader/restarts": self._pool.restarts,
            "grader/errors": self._errors,
        }

    def _settled(self, problem: Problem, text: str) -> float | None:
        """What `quick` says: None, to ask a worker."""
        assert self._quick is not None
        try:
            verdict = self._quick(problem, text)
        except Exception as error:  # noqa: BLE001  whatever a user's grader raises
            return self._erred(f"it raised {described(error)}")
        try:
            return None if verdict is None else float(self._succeeded(as_reward(verdict)))
        except ValueError as error:
            return self._erred(str(error))

    def _value(self, reply: "Reply", nothing: Any) -> Any:
        """The value of a reply, or `nothing` where there is none; failures are counted."""
        from treeopo.problems.graders.pool import Outcome

        match reply.outcome:
            case Outcome.DONE:
                return self._succeeded(reply.value)
            case Outcome.FAILED:
                self._erred(reply.error)
            case Outcome.TIMEOUT | Outcome.HUNG:
                self._failed(f"no reply within {self._deadline:g} s (grading.deadline_seconds)")
            case Outcome.DIED:
                self._failed("its process died, or went beyond grading.memory_mib")
            case _:
                assert_never(reply.outcome)
        return nothing

    def _erred(self, why: str) -> float:
        self._errors += 1
        self._failed(why)
        return 0.0

    def _succeeded(self, value: Any) -> Any:
        self._failures_in_a_row = 0
        return value

    def _failed(self, why: str) -> None:
        if self._ships:  # by what a model wrote: wrong, and counted
            return
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= FAILURES_IN_A_ROW:
            raise GraderError(f"grader {self._name} failed {FAILURES_IN_A_ROW} times in a row, the last time: {why}")
        if not self._warned:
            self._warned = True
            _log.warning("grader %s: %s; such a completion is worth 0, and counted", self._name, why)
