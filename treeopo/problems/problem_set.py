"""Problems together with the text that asks them and the name of what grades them."""

from collections.abc import Iterator
from dataclasses import dataclass

from treeopo.errors import ConfigError
from treeopo.problems.settings import DEFAULT_GRADER
from treeopo.records import Problem

STEP_SEPARATOR = "\n\n"


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
    """Problems, their prompt template and the name of their grader; `spec` is the name they were asked for by."""

    spec: str
    problems: tuple[Problem, ...]
    template: PromptTemplate = PromptTemplate()
    grader: str = DEFAULT_GRADER

    def __len__(self) -> int:
        return len(self.problems)

    def __iter__(self) -> Iterator[Problem]:
        return iter(self.problems)

    def prompt(self, problem: Problem) -> str:
        """The root prompt of `problem`'s tree."""
        return self.template.render(problem.question)
