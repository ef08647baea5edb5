"""Problems together with the text that asks them and the family that grades them."""

from collections.abc import Iterator
from dataclasses import dataclass

from treeopo.errors import ConfigError
from treeopo.problems.grading import number_answer, number_answer_strict
from treeopo.problems.math_answers import spelled_answer
from treeopo.problems.settings import Family
from treeopo.records import Problem

STEP_SEPARATOR = "\n\n"

_CANONICAL = {
    Family.NUMBER: number_answer,
    Family.NUMBER_STRICT: number_answer_strict,
    Family.MATH: spelled_answer,
}


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """How a question becomes the root of its tree. `text` names `{question}` once and ends in the step separator.

    Ending in the separator makes every prefix of a trace (question and whole steps) end the same way, so that root and
    inner nodes ask for "the next step" alike. Raises `ConfigError` for any other text.
    """

    text: str = f"Question: {{question}}{STEP_SEPARATOR}Answer:{STEP_SEPARATOR}"

    def __post_init__(self) -> None:
        if self.text.count("{question}") != 1 or not self.text.endswith(STEP_SEPARATOR):
            raise ConfigError(f"prompt template {self.text!r}: name {{question}} once and end in a blank line (\\n\\n)")

    def render(self, question: str) -> str:
        return self.text.replace("{question}", question)


@dataclass(frozen=True, slots=True)
class ProblemSet:
    """Problems, their prompt template and the family they are graded by; `spec` is the name they were asked for by."""

    spec: str
    problems: tuple[Problem, ...]
    template: PromptTemplate = PromptTemplate()
    family: Family = Family.NUMBER

    def __len__(self) -> int:
        return len(self.problems)

    def __iter__(self) -> Iterator[Problem]:
        return iter(self.problems)

    def answer(self, text: str) -> str:
        """The final answer in `text` in the family's canonical form, by which answers are counted; empty: none."""
        return _CANONICAL[self.family](text)

    def prompt(self, problem: Problem) -> str:
        """The root prompt of `problem`'s tree."""
        return self.template.render(problem.question)
