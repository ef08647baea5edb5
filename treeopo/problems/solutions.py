"""A problem set's own worked solutions as token ids, for supervised fine-tuning."""

from dataclasses import dataclass, field
from typing import Protocol

from treeopo.errors import ProblemError, require
from treeopo.ports import Notify
from treeopo.problems.prompting import Encode, Prompter, PromptSettings
from treeopo.problems.spec import load_problem_set


class EncodeWithEnd(Encode, Protocol):
    """What solutions need of a tokenizer."""

    def answer_ends(self, *, chat: bool) -> tuple[int, ...]: ...


@dataclass(frozen=True, slots=True)
class SolutionSettings:
    """Worked solutions to learn from, instead of a store's solved traces."""

    problems: str | None = None
    """The problem set that they belong to; none: the store's solved traces are learned from."""

    limit: int | None = None
    """Take the first so many problems of it; none: all."""

    prompt: PromptSettings = field(default_factory=PromptSettings)
    """How its questions are put."""

    def __post_init__(self) -> None:
        require(self.limit is None or self.limit >= 1, f"solutions.limit is {self.limit}; it must be at least 1")
        require(
            self.problems is not None or (self.limit is None and self.prompt == PromptSettings()),
            "solutions.limit and solutions.prompt go with solutions.problems; name a problem set there",
        )


def worked_solutions(
    settings: SolutionSettings, tokenizer: EncodeWithEnd, notify: Notify = lambda notice: None
) -> list[tuple[list[int], list[int]]]:
    """(prompt, solution with the token that ends an answer) of every problem that has a worked solution; `notify` as in
    `Prompter`.

    Raises:
        ProblemError: the set cannot be read, or no problem of it has one.
    """
    assert settings.problems is not None
    problem_set = load_problem_set(settings.problems, settings.limit)
    prompter = Prompter(tokenizer, settings.prompt, problem_set, notify)
    end = tokenizer.answer_ends(chat=settings.prompt.style == "chat")[0]
    pairs = [
        (prompter(problem), [*tokenizer.encode(problem.solution), end]) for problem in problem_set if problem.solution
    ]
    if not pairs:
        raise ProblemError(f"{settings.problems}: no problem has a worked solution to learn from; choose another set")
    return pairs
