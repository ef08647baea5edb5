"""What a family of answers needs, in one object: `Grader`. Those that ship and those of users are found by name."""

import inspect
from functools import cache
from numbers import Real
from typing import Any, Protocol

from treeopo.errors import ConfigError, described, shortened
from treeopo.plugins import find
from treeopo.problems.settings import GRADERS
from treeopo.records import Problem

METHODS = ("parse_gold", "answer", "grade")


class Grader(Protocol):
    """How final answers of a family are asked for, read and compared. Plain methods, which may be slow: all but
    `parse_gold` run in a process of their own, which is killed at the deadline (`grading.deadline_seconds`).

    prompt_ending: the sentence that a chat prompt ends in, asking for the answer in the form that is graded.

    A grader may also have

        quick(problem, text) -> float | None    what takes microseconds, settled on the event loop; None: ask `grade`
        prepare(deadline_seconds) -> None       called once in each new process, before its first answer
        reads(gold) -> bool                     whether it understands a gold answer; those that it does not are told
                                                before anything starts, and worth 0. Without it all count as understood
    """

    prompt_ending: str

    def parse_gold(self, text: str, *, worked: bool) -> str:
        """The gold answer in a row's answer column; `worked`: the column holds a whole worked solution.

        Raises:
            ValueError: it states none; the message goes on from the column's name ("does not end in one number").
        """
        ...

    def answer(self, text: str) -> str:
        """The final answer in `text`, in a form in which equal answers are equal; empty where there is none."""
        ...

    def grade(self, problem: Problem, text: str) -> float:
        """The reward of a finished solution, in [0, 1]: 1 if its final answer is the problem's, 0 if it is not.

        Raises:
            GradingTimeout: it ended its own slow work; the reward is 0, and counted.
        """
        ...


class GradingTimeout(Exception):  # noqa: N818  says what happened; no fault of the grader's
    """A grader gave an answer up as too slow, and lives on."""


@cache
def load_grader(name: str) -> Grader:
    """The grader called `name`: a key of `GRADERS`, or `package.module:Name`. A class is made, an object taken as is.

    Raises:
        ConfigError: there is none, it cannot be made, or it lacks something of `Grader`.
    """
    found = find(name, GRADERS, "grader")
    if inspect.isclass(found):
        try:
            found = found()
        except Exception as error:  # whatever a user's class raises
            raise ConfigError(f"grader {name}: cannot be made without arguments ({described(error)})") from error
    lacking = [method for method in METHODS if not callable(getattr(found, method, None))]
    if not isinstance(getattr(found, "prompt_ending", None), str):
        lacking.append("prompt_ending (a text)")
    if lacking:
        raise ConfigError(f"grader {name} lacks {', '.join(lacking)}; docs/problems.md shows a grader")
    waiting = [method for method in METHODS if inspect.iscoroutinefunction(getattr(found, method))]
    if waiting:
        raise ConfigError(f"grader {name}: {', '.join(waiting)} is async; write it plain, it has a process of its own")
    grader: Grader = found
    return grader


def has_quick(grader: Grader) -> bool:
    """Whether `quick` speaks for the grader: it has one, and no subclass brought another `grade` without it."""
    order = [kind for kind in type(grader).__mro__ if {"quick", "grade"} & set(vars(kind))]
    return callable(getattr(grader, "quick", None)) and (not order or "quick" in vars(order[0]))


def as_reward(value: Any) -> float:
    """What a grader returned, as a number in [0, 1]; True, False and numpy's or torch's scalars are numbers.

    Raises:
        ValueError: it is none; the message says what it is.
    """
    number = value.item() if callable(getattr(value, "item", None)) and getattr(value, "shape", None) == () else value
    if not isinstance(number, Real) or not 0.0 <= float(number) <= 1.0:  # NaN is not
        raise ValueError(f"it returned {shortened(repr(value))}, which is no number in [0, 1]")
    return float(number)
