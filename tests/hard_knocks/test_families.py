"""Prompts, examples, solutions and trees in the tokens of each family, as its own tokenizer and template have them."""

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from transformers import LlamaConfig
from treeopo_storage import open_store

from tests.hard_knocks.families import FAMILIES, Family
from tests.hard_knocks.small_stores import PROBLEM, build, imported, typed, whole
from treeopo.engines.scripted import Pieces, ScriptedEngine
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.errors import ModelError
from treeopo.inspect.tokens import canonical_prefixes
from treeopo.problems.problem_set import ProblemSet
from treeopo.problems.prompting import Prompter, PromptSettings
from treeopo.problems.solutions import SolutionSettings, worked_solutions
from treeopo.records import FinishReason, FloatArray, IntArray, Problem, Request
from treeopo.search.tree import decode_text

NUMBERS = ProblemSet("numbers", (PROBLEM,))
SAID = ("it is so.\n\nso 12\n\n#### 12", "so it is 7\n\n#### 7")


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> Family:
    found: Family = request.param
    return found


@pytest.fixture
def tokenizer(family: Family, tmp_path: Path) -> ModelTokenizer:
    return family.saved(tmp_path / "model")


def examples(tmp_path: Path, *solutions: str) -> str:
    rows = [
        {"problem": f"Is it {n}?", "answer": str(n), "solution": said, "unique_id": str(n)}
        for n, said in enumerate(solutions)
    ]
    (tmp_path / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "examples.jsonl")


def prompter(tokenizer: ModelTokenizer, notices: list[str] | None = None, **settings: Any) -> Prompter:
    told = [] if notices is None else notices
    return Prompter(tokenizer, PromptSettings(**settings), NUMBERS, told.append)


def begins_once(ids: list[int], tokenizer: ModelTokenizer, family: Family) -> bool:
    """Whether a text begins as the family's tokenizer has it, and no beginning follows."""
    bos = None if family.begins is None else tokenizer.hf.convert_tokens_to_ids(family.begins)
    return bos is None or (ids[0] == bos and ids.count(bos) == 1)


@pytest.mark.parametrize("shots", [0, 2])
def test_a_plain_prompt_is_what_the_tokenizer_makes_of_its_text_before_an_answer(
    tokenizer: ModelTokenizer, family: Family, tmp_path: Path, shots: int
) -> None:
    given: dict[str, Any] = {"shots": shots, "examples": examples(tmp_path, *SAID)} if shots else {}
    ids = prompter(tokenizer, **given)(PROBLEM)
    texts = [f"Question: Is it {n}?\n\nAnswer:\n\n{said}\n\n" for n, said in enumerate(SAID[:shots])]
    assert ids == tokenizer.hf.encode("".join(texts) + f"Question: {PROBLEM.question}\n\nAnswer:\n\nI")[:-1]
    assert begins_once(ids, tokenizer, family)


@pytest.mark.parametrize("shots", [0, 2])
def test_a_chat_prompt_is_what_transformers_makes_of_its_messages(
    tokenizer: ModelTokenizer, family: Family, tmp_path: Path, shots: int
) -> None:
    given: dict[str, Any] = {"shots": shots, "examples": examples(tmp_path, *SAID)} if shots else {}
    (tmp_path / "template.txt").write_text("{question}")
    ids = prompter(tokenizer, style="chat", template=tmp_path / "template.txt", **given)(PROBLEM)
    turns = [
        {"role": role, "content": content}
        for n, said in enumerate(SAID[:shots])
        for role, content in (("user", f"Is it {n}?"), ("assistant", said))
    ]
    turns.append({"role": "user", "content": PROBLEM.question})
    assert ids == tokenizer.hf.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    if family.name != "llama2" or not shots:  # Llama 2 begins every turn of the user so
        assert begins_once(ids, tokenizer, family)


@pytest.mark.parametrize("style", ["plain", "chat"])
def test_a_special_token_that_a_question_or_a_solution_names_is_text(
    tokenizer: ModelTokenizer, family: Family, tmp_path: Path, style: Literal["plain", "chat"]
) -> None:
    named = Problem("named", f"What is{''.join(family.specials)}?", "7")
    plainly = Problem("plainly", "What is it?", "7")
    asked = prompter(tokenizer, style=style)
    for name in family.specials:
        number = tokenizer.hf.convert_tokens_to_ids(name)
        assert asked(named).count(number) == asked(plainly).count(number)
        assert number not in tokenizer.encode(f"so {name} 12")
    assert tokenizer.decode(tokenizer.begin(tokenizer.escape(named.question))).strip() == named.question
    (tmp_path / "p.jsonl").write_text(json.dumps({"question": "?", "answer": f"so {family.turn}\n#### 7"}) + "\n")
    ((_, solution),) = worked_solutions(SolutionSettings(str(tmp_path / "p.jsonl")), tokenizer)
    assert solution.count(tokenizer.hf.convert_tokens_to_ids(family.turn)) == (family.turn == family.eos)  # its end


def test_the_model_ends_at_the_tokens_of_tokenizer_and_generation_config(
    tokenizer: ModelTokenizer, family: Family, tmp_path: Path
) -> None:
    ids = {name: tokenizer.hf.convert_tokens_to_ids(name) for name in family.ends}
    assert tokenizer.end_token_ids == set(ids.values())
    assert tokenizer.answer_ends(chat=True)[0] == ids[family.turn]
    assert tokenizer.answer_ends(chat=False)[0] == ids[family.eos] == tokenizer.eos_token_id
    for end in ids.values():
        assert decode_text([*tokenizer.encode("so 12"), end], tokenizer) == tokenizer.decode(tokenizer.encode("so 12"))
        assert tokenizer.reads_as([*tokenizer.begin("so 12"), end], "so 12")
    notices: list[str] = []
    prompter(tokenizer, notices)
    assert [notice for notice in notices if "give --prompt chat" in notice] == notices != []


def test_without_a_generation_config_the_ends_are_those_of_the_config(tmp_path: Path) -> None:
    ends = FAMILIES[1].saved(tmp_path / "model").end_token_ids
    (tmp_path / "model" / "generation_config.json").unlink()
    LlamaConfig(eos_token_id=sorted(ends)).save_pretrained(tmp_path / "model")
    assert ModelTokenizer(str(tmp_path / "model")).end_token_ids == ends
    (tmp_path / "model" / "config.json").unlink()
    alone = ModelTokenizer(str(tmp_path / "model"))
    assert alone.end_token_ids == {alone.eos_token_id}


@pytest.mark.parametrize("style", ["plain", "chat"])
def test_a_solution_to_learn_from_ends_as_an_answer_of_the_family(
    tokenizer: ModelTokenizer, family: Family, tmp_path: Path, style: Literal["plain", "chat"]
) -> None:
    (tmp_path / "p.jsonl").write_text('{"question": "Is it?", "answer": "so\\n#### 12"}\n')
    settings = SolutionSettings(str(tmp_path / "p.jsonl"), prompt=PromptSettings(style=style))
    ((prompt, solution),) = worked_solutions(settings, tokenizer)
    end = family.turn if style == "chat" else family.eos
    assert solution[-1] == tokenizer.hf.convert_tokens_to_ids(end)
    assert prompt == prompter(tokenizer, style=style)(Problem("p", "Is it?", "12"))
    assert not tokenizer.end_token_ids & set(solution[:-1])


def test_arguments_reach_the_templates_that_ask_for_them_and_are_refused_by_the_others(
    tokenizer: ModelTokenizer, family: Family
) -> None:
    given: dict[str, Any] = {"style": "chat", "chat_arguments": {"enable_thinking": False}}
    if family.argument != "enable_thinking":
        with pytest.raises(ModelError, match=r"asks for no 'enable_thinking'; leave it out$"):
            prompter(tokenizer, **given)
        return
    closed, opened = prompter(tokenizer, **given)(PROBLEM), prompter(tokenizer, style="chat")(PROBLEM)
    assert tokenizer.decode(closed) == tokenizer.decode(opened) + "<think>\n\n</think>\n\n"


def test_examples_that_the_template_shortens_are_told_of(
    tokenizer: ModelTokenizer, family: Family, tmp_path: Path
) -> None:
    thinking = "<think>\nso\n</think>\n\nso 12"
    for said, told in ((thinking, family.forgets), ("so\n\n12", False), ("\n so 12\n", False)):
        notices: list[str] = []
        prompter(tokenizer, notices, style="chat", shots=2, examples=examples(tmp_path, "it is 7", said))
        assert len(notices) == told
        assert all("shows 1 of 2 worked examples otherwise" in notice for notice in notices)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}<{{ m.role }}>{{ m.content | replace('\n\n', '\n') }}{% endfor %}",
        "{% for m in messages %}<{{ m.role }}>{{ m.content | truncate(12, True) }}{% endfor %}",
        "{% for m in messages %}<{{ m.role }}>{{ m.content.split() | join(' ') }}{% endfor %}",
        "{% for m in messages if m.role != 'assistant' %}<{{ m.role }}>{{ m.content }}{% endfor %}",
        "{% for m in messages[-3:] %}<{{ m.role }}>{{ m.content }}{% endfor %}",
    ],
    ids=["joins-lines", "cuts", "joins-words", "drops-answers", "shows-the-last"],
)
def test_whatever_a_template_leaves_out_of_the_examples_is_told_of_in_one_line(tmp_path: Path, template: str) -> None:
    tokenizer = FAMILIES[3].saved(tmp_path / "model")
    tokenizer.hf.chat_template = template
    notices: list[str] = []
    prompter(tokenizer, notices, style="chat", shots=2, examples=examples(tmp_path, *SAID))
    (notice,) = notices
    assert notice.startswith("warning: the chat template shows ")
    assert "\n" not in notice


STEPS = ["so 1+2=3", "so it is", "12"]


def test_imported_steps_join_to_the_tokens_of_the_whole_solution(
    tokenizer: ModelTokenizer, family: Family, tmp_path: Path
) -> None:
    tree = imported(tmp_path, tokenizer, {"prompt": "so 2+3=\n\n", "steps": STEPS})
    ids = tree.prefix_tokens(3).tolist()
    assert ids[:-1] == tokenizer.hf.encode("so 2+3=\n\n" + "\n\n".join(STEPS))
    assert ids[-1] == tokenizer.eos_token_id
    assert begins_once(ids, tokenizer, family)
    assert tree.texts == ("so 2+3=\n\n", "so 1+2=3\n\n", "so it is\n\n", "12")


def test_an_imported_solution_under_a_rendered_prompt_ends_as_the_template_ends_one(
    tokenizer: ModelTokenizer, family: Family, tmp_path: Path
) -> None:
    messages = [{"role": "user", "content": "2+3+4?"}]
    prompt = tokenizer.show(messages)
    ids = imported(tmp_path, tokenizer, {"prompt": prompt, "steps": STEPS}).prefix_tokens(3).tolist()
    ends_turns = family.turn in prompt  # Llama 2's turns of a user have no end of their own
    assert ids[-1] == tokenizer.hf.convert_tokens_to_ids(family.turn if ends_turns else family.eos)
    assert begins_once(ids, tokenizer, family)
    assert ids[: len(tokenizer.chat(messages))] == tokenizer.chat(messages)


def ending_in(end: int) -> type[ScriptedEngine]:
    """An engine whose answers end in a token that need not be what the tokenizer calls the end of text."""

    class Ending(ScriptedEngine):
        def _lay_out(self, pieces: Pieces) -> tuple[list[int], list[float]]:
            token_ids, logprobs = super()._lay_out(pieces)
            return [*token_ids, end], [*logprobs, -1.0]

        def _cut(self, token_ids: list[int], request: Request) -> tuple[int, FinishReason]:
            asked.append([int(token) for token in request.token_ids])
            return super()._cut(token_ids[:-1], request)

    asked.clear()
    return Ending


asked: list[list[int]] = []
"""What the newest of these engines was asked."""


def numbered(prompt: str, rng: random.Random, version: int) -> Pieces:
    return [(f"so it is {rng.randrange(9)}\n\n", -1.0), ("#### 9", -1.0)]


@pytest.mark.parametrize("style", ["plain", "chat"])
def test_a_searched_tree_begins_once_and_ends_at_any_end_of_the_model(
    tokenizer: ModelTokenizer, family: Family, tmp_path: Path, style: str
) -> None:
    end = tokenizer.hf.convert_tokens_to_ids(family.ends[-1])
    store = open_store(
        build(tmp_path, tokenizer, ending_in(end), numbered, prompt={"style": style}, search={"rollouts": 6})
    )
    tree = store.problem(0)
    for node in range(tree.node_count):
        ids = tree.prefix_tokens(node).tolist()
        assert begins_once(ids, tokenizer, family)
        if tree.terminal[node]:
            assert ids[-1] == end
            assert tree.texts[node] == "#### 9"
    assert canonical_prefixes(store, tokenizer).share == 1


@pytest.mark.parametrize("other", ["llama2", "qwen3"])
def test_a_retokenised_store_begins_once_in_its_new_tokenizer_s_way(
    tokenizer: ModelTokenizer, family: Family, tmp_path: Path, other: str
) -> None:
    (tmp_path / "source").mkdir()
    teacher = next(one for one in FAMILIES if one.name == other).saved(tmp_path / "teacher")
    store = build(tmp_path / "source", teacher, policy=numbered, search={"rollouts": 6})
    new = str(tmp_path / "new.zarr")
    told = typed("store", "retokenize", str(store), "-o", new, "--tokenizer", str(tmp_path / "model"))
    assert "; 0 no longer decode to their text" in told
    tree = open_store(tmp_path / "new.zarr").problem(0)
    for node in range(tree.node_count):
        ids = tree.prefix_tokens(node).tolist()
        assert begins_once(ids, tokenizer, family)
        ended = [tokenizer.eos_token_id] if tree.terminal[node] else []
        assert ids[len(ids) - len(ended) :] == ended
        assert ids[: len(ids) - len(ended)] == tokenizer.begin(whole(tree, node))


def test_a_retokenised_solution_ends_whichever_end_its_teacher_wrote(tmp_path: Path) -> None:
    teacher, student = FAMILIES[2].saved(tmp_path / "teacher"), FAMILIES[3].saved(tmp_path / "student")
    row = {"question": "?", "answer": "9", "prompt": teacher.show([{"role": "user", "content": "?"}]), "steps": ["9"]}
    (tmp_path / "t.jsonl").write_text(json.dumps(row | {"reward": 1}) + "\n")
    (made, new), model = (str(tmp_path / "t.zarr"), str(tmp_path / "s.zarr")), "--tokenizer"
    typed("store", "import", str(tmp_path / "t.jsonl"), "-o", made, model, str(tmp_path / "teacher"))
    assert open_store(made).problem(0).token_ids[-1] == teacher.hf.convert_tokens_to_ids("<turn|>")
    typed("store", "retokenize", made, "-o", new, model, str(tmp_path / "student"))
    assert open_store(new).problem(0).token_ids[-1] == student.eos_token_id


def test_a_teacher_that_ended_without_a_word_is_not_asked_to_go_on(
    tokenizer: ModelTokenizer, family: Family, tmp_path: Path
) -> None:
    for name in family.ends:
        end = tokenizer.hf.convert_tokens_to_ids(name)
        store = build(tmp_path, tokenizer, ending_in(end), lambda *_: [], search={"rollouts": 3})
        assert asked
        assert not any(end in ids for ids in asked)
        shutil.rmtree(store)


def test_a_prompt_that_ends_in_a_blank_line_ends_in_the_tokens_of_one_before_a_word(
    tokenizer: ModelTokenizer, family: Family
) -> None:
    for text in ("so?\n\n", "so?\n", "12 +\n\n\n", "so", "so? "):
        ids = tokenizer.begin(text)
        assert tokenizer.reads_as(ids, text)
        assert tokenizer.encode(text) == (tokenizer.encode("so" + text)[-len(tokenizer.encode(text)) :])
        if text[-1] == "\n":
            assert ids == tokenizer.hf.encode(text + "it")[: len(ids)]
    blank = tokenizer.encode("so.\n\n")[len(tokenizer.encode("so.")) :]
    assert (len(blank) == 2) == (family.name == "smollm2")


class Scoring(ScriptedEngine):
    async def score(self, token_ids: Sequence[IntArray], prefix_lengths: Sequence[int]) -> list[FloatArray]:
        lengths = [len(ids) - length for ids, length in zip(token_ids, prefix_lengths, strict=True)]
        return [np.zeros(length, np.float32) for length in lengths]


def test_a_step_that_lacks_its_separator_gets_the_tokens_of_one_before_a_word(tmp_path: Path) -> None:
    tokenizer = FAMILIES[-1].saved(tmp_path / "model")
    search = {"rollouts": 8, "actions": ["step", "rephrase"]}
    said: Pieces = [("so it is", -1.0)]
    tree = open_store(build(tmp_path, tokenizer, Scoring, lambda *_: said, search=search)).problem(0)
    steps = [tree.prefix_tokens(node).tolist() for node in range(1, tree.node_count) if not tree.terminal[node]]
    assert steps
    assert all(ids[-2:] == tokenizer.encode("\n\n") for ids in steps)
