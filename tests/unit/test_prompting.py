"""Prompts say what they are configured to say, and a setting that cannot work is one clear line."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from treeopo.engines.scripted import CharTokenizer
from treeopo.errors import ConfigError, ProblemError
from treeopo.problems.problem_set import ProblemSet, PromptTemplate
from treeopo.problems.prompting import ChatArguments, Message, Prompter, PromptSettings
from treeopo.records import Problem

PROBLEM = Problem("p", "How many?", "3")
PLAIN = PromptTemplate()
NUMBERS = ProblemSet("numbers", (PROBLEM,))


class Chatting(CharTokenizer):
    """Shows messages as a chat template would."""

    def chat(self, messages: Sequence[Message], chat_arguments: ChatArguments) -> list[int]:
        return self.encode(self.show(messages, chat_arguments))

    def show(self, messages: Sequence[Message], chat_arguments: ChatArguments) -> str:
        return "".join(f"<{row['role']}>{row['content']}" for row in messages) + "<assistant>"


@pytest.fixture
def examples(tmp_path: Path) -> str:
    rows = [{"question": f"Is it {n}?", "answer": f"It is {n}.\n#### {n}"} for n in (1, 2, 3)]
    path = tmp_path / "examples.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def shown(settings: PromptSettings, problem_set: ProblemSet = NUMBERS) -> tuple[str, tuple[str, ...]]:
    prompter = Prompter(Chatting(), settings, problem_set)
    return CharTokenizer().decode(prompter(PROBLEM)), prompter.stop


def test_a_plain_prompt_is_the_template() -> None:
    assert shown(PromptSettings()) == (PLAIN.render("How many?"), ())


def test_examples_stand_before_the_question_with_their_solutions(examples: str) -> None:
    text, stop = shown(PromptSettings(shots=2, examples=examples))
    assert text.count("Question: ") == 3
    assert "#### 1\n\nQuestion: Is it 2?" in text
    assert "Is it 3?" not in text
    assert text.endswith(PLAIN.render("How many?"))
    assert stop == ("\n\nQuestion:",)  # where a base model would go on to ask itself


def test_a_chat_prompt_is_the_tokenizer_s_and_examples_are_earlier_turns(examples: str) -> None:
    text, stop = shown(PromptSettings(style="chat", shots=1, examples=examples))
    assert text.startswith("<user>Is it 1?")
    assert "<assistant>It is 1.\n" in text
    assert text.index("How many?") > text.index("#### 1")
    assert text.endswith("<assistant>")
    assert stop == ()


def test_a_chat_asks_for_the_answer_in_the_form_that_is_graded() -> None:
    chat = PromptSettings(style="chat")
    assert "####" in shown(chat)[0]
    text, _ = shown(chat, ProblemSet("latex", (PROBLEM,), grader="math"))
    assert "\\boxed{}" in text
    assert "####" not in text


def test_a_template_is_a_file_that_a_user_can_replace(tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text("Q {question}\n\n")
    assert shown(PromptSettings(template=path))[0] == "Q How many?\n\n"
    path.write_text("Please solve: {question}")
    assert shown(PromptSettings(style="chat", template=path))[0] == "<user>Please solve: How many?<assistant>"


@pytest.mark.parametrize("text", ["no placeholder\n\n", "{question} no blank line at the end"])
def test_a_template_that_cannot_be_used_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text(text)
    with pytest.raises(ConfigError, match="prompt template"):
        shown(PromptSettings(template=path))
    with pytest.raises(ConfigError, match=r"absent\.txt: cannot be read"):
        shown(PromptSettings(template=tmp_path / "absent.txt"))


def test_shots_need_examples_and_enough_of_them(examples: str) -> None:
    with pytest.raises(ConfigError, match="give both or neither"):
        PromptSettings(shots=2)
    with pytest.raises(ProblemError, match="fewer than the 9 shots"):
        shown(PromptSettings(shots=9, examples=examples))
