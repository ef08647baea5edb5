"""How a question becomes the tokens a model is asked to continue: plain text or chat, with or without examples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from treeopo_storage.errors import StoreError
from treeopo_storage.text_files import read_text

from treeopo.errors import ConfigError, ModelError, ProblemError, require
from treeopo.ports import Notify
from treeopo.problems.graders import load_grader
from treeopo.problems.problem_set import STEP_SEPARATOR, ProblemSet, PromptTemplate
from treeopo.problems.spec import load_problems
from treeopo.records import Problem

Message = dict[str, str]
ChatArguments = Mapping[str, bool | int | float | str]
"""What a chat template is told beside the messages, by its own names."""

STOP_KEY = "stop"
"""Where a tree store's search settings keep the `stop` strings of its prompts."""


class Encode(Protocol):
    """What a prompt needs of a tokenizer (`treeopo.engines.tokenizer.ModelTokenizer` says it in full): `begin` starts a
    sequence, `encode` goes on with one, `escape` makes text of the special tokens that a text names; `chat`, and `show`
    as text, raise `ModelError` where it has no chat template, or one that does not know an argument. `is_instruct`: the
    model was tuned to answer under it.
    """

    @property
    def is_instruct(self) -> bool: ...

    def begin(self, text: str) -> list[int]: ...

    def encode(self, text: str) -> list[int]: ...

    def escape(self, text: str) -> str: ...

    def chat(self, messages: Sequence[Message], chat_arguments: ChatArguments) -> list[int]: ...

    def show(self, messages: Sequence[Message], chat_arguments: ChatArguments) -> str: ...


@dataclass(frozen=True, slots=True)
class PromptSettings:
    """How a question is put to a model."""

    style: Literal["plain", "chat"] = "plain"
    """plain: a text, which suits base models; chat: the tokenizer's own chat template."""

    shots: int = 0
    """Worked examples before each question."""

    examples: str | None = None
    """The problem set they come from: the first ones of it that have a worked solution."""

    template: Path | None = None
    """A text file that names {question} once, instead of the style's own text."""

    chat_arguments: dict[str, bool | int | float | str] = field(default_factory=dict)
    """Arguments of the chat template, e.g. enable_thinking = false."""

    def __post_init__(self) -> None:
        require(
            self.style == "chat" or not self.chat_arguments,
            "prompt.chat_arguments are a chat template's; set prompt.style to chat, or leave them out",
        )
        require(self.shots >= 0, f"prompt.shots is {self.shots}; it must not be negative")
        require(
            (self.shots > 0) == (self.examples is not None),
            f"prompt.shots is {self.shots} and prompt.examples {self.examples or 'not given'}; give both or neither",
        )


def recorded(prompt: dict[str, Any]) -> dict[str, Any]:
    """`PromptSettings` as JSON, without what earlier versions lacked if it is not used: what they began goes on."""
    return {name: value for name, value in prompt.items() if name != "chat_arguments" or value}


@dataclass(frozen=True, slots=True)
class Wording:
    """What is said around a question. `text` names {question} once; an example's solution follows it and `lead`."""

    text: str
    examples: Sequence[Problem] = ()
    stop: tuple[str, ...] = ()
    lead: str = ""


class Prompter:
    """Prompts of one problem set for one tokenizer, by the settings and the set's template or by a `wording` of their
    own. A completion should also end at any of the `stop` strings: with examples before it, a base model goes on to ask
    itself the next question. `notify` is told if a chat template shows the examples otherwise than they are written,
    and if an instruct model is asked without its template.

    Raises:
        ConfigError: the template file cannot be read or used.
        ProblemError: the examples cannot be read, or fewer than `shots` of them have a solution.
        ModelError: style chat and a tokenizer without a chat template.
    """

    def __init__(
        self,
        tokenizer: Encode,
        settings: PromptSettings,
        problem_set: ProblemSet,
        notify: Notify = lambda notice: None,
        wording: Wording | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._chat = settings.style == "chat"
        self._chat_arguments = settings.chat_arguments
        self._wording = wording or _wording(settings, problem_set)
        self._examples, self.stop = self._wording.examples, self._wording.stop
        self(Problem("", "", ""))  # a tokenizer without a chat template is found out here
        if self._chat and self._examples:
            self._tell_of_changes(notify)
        if not self._chat and tokenizer.is_instruct:
            notify(
                "the model was tuned to answer under its chat template, and is asked without it: give --prompt chat, "
                "or see what it does as a base model"
            )

    def __call__(self, problem: Problem, examples: Sequence[Problem] | None = None) -> list[int]:
        """Tokens that ask `problem`, behind its own `examples` if given.

        Raises:
            ModelError: it names a special token that the tokenizer cannot keep as text.
        """
        try:
            return self._encode(problem, self._examples if examples is None else examples)
        except ModelError as error:
            raise ModelError(f"problem {problem.id!r}: {error}" if problem.id else str(error)) from None

    def _encode(self, problem: Problem, examples: Sequence[Problem]) -> list[int]:
        if self._chat:
            return self._tokenizer.chat(self._messages(problem, examples), self._chat_arguments)
        return self._tokenizer.begin("".join([*map(self._solved, examples), self._plain(problem)]))

    def _messages(self, problem: Problem, examples: Sequence[Problem]) -> list[Message]:
        turns = [
            message
            for example in examples
            for message in (_message("user", self._render(example)), _message("assistant", example.solution or ""))
        ]
        return [*turns, _message("user", self._render(problem))]

    def instruct(self, text: str) -> list[int]:
        """Tokens of a prompt that is `text` alone, in the style of the others and without their examples."""
        if self._chat:
            return self._tokenizer.chat([_message("user", text.strip())], self._chat_arguments)
        return self._tokenizer.begin(self._tokenizer.escape(text))

    def _tell_of_changes(self, notify: Notify) -> None:
        """Templates rewrite earlier turns: Qwen3's takes out what is between think tags, others join lines or show the
        last turns alone. White space around a turn is theirs to take: it says nothing.
        """
        shown = self._tokenizer.show(self._messages(Problem("", "", ""), self._examples), self._chat_arguments)
        changed = [
            example
            for example in self._examples
            if any(turn.strip() not in shown for turn in (self._render(example), example.solution or ""))
        ]
        if changed:
            notify(
                f"warning: the chat template shows {len(changed)} of {len(self._examples)} worked examples otherwise "
                f"than they are written, {changed[0].id!r} for one (many take out <think>...</think>); "
                "use prompt.style plain, or examples that it leaves alone"
            )

    def _solved(self, example: Problem) -> str:
        solution = self._tokenizer.escape(example.solution or "")
        return f"{self._plain(example)}{self._wording.lead}{solution}{STEP_SEPARATOR}"

    def _plain(self, problem: Problem) -> str:
        """The template may name special tokens, the question only as text."""
        return self._wording.text.replace("{question}", self._tokenizer.escape(problem.question))

    def _render(self, problem: Problem) -> str:
        return self._wording.text.replace("{question}", problem.question)


def _wording(settings: PromptSettings, problem_set: ProblemSet) -> Wording:
    chat = settings.style == "chat"
    own = _chat_text(problem_set.grader) if chat else problem_set.template.text
    text = own if settings.template is None else _read(settings.template, chat)
    examples = _examples(settings)
    opening = text.partition("{question}")[0].strip()
    return Wording(text, examples, (STEP_SEPARATOR + opening,) if examples and opening and not chat else ())


def _chat_text(grader: str) -> str:
    ending = load_grader(grader).prompt_ending
    return f"{{question}}\n\nSolve it step by step, with a blank line after each step. {ending}"


def _read(path: Path, chat: bool) -> str:
    try:
        text = read_text(path)
    except StoreError as error:
        raise ConfigError(f"prompt template {error}") from None
    if chat and text.count("{question}") == 1:
        return text.strip()
    return PromptTemplate(text).text


def _examples(settings: PromptSettings) -> list[Problem]:
    if settings.examples is None:
        return []
    solved = [problem for problem in load_problems(settings.examples, 4 * settings.shots) if problem.solution]
    if len(solved) < settings.shots:
        raise ProblemError(
            f"{settings.examples}: {len(solved)} of its first {4 * settings.shots} problems have a worked solution, "
            f"fewer than the {settings.shots} shots asked for"
        )
    return solved[: settings.shots]


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}
