"""Prompts in tokens: where a text begins, what names a special token, what a chat template makes of it."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import Unigram
from transformers import GenerationConfig
from treeopo_storage import (
    StoreMeta,
    create_store,
    open_store,
    open_writer,
)
from treeopo_storage.conformance import random_tree

from tests.hard_knocks.odd_tokenizers import BOS, CHAT, EOS, byte_level, metaspace, saved
from tests.hard_knocks.small_stores import NAMES_ONE, PROBLEM, build, typed
from treeopo.config import BuildConfig, load_config
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.errors import ConfigError, ModelError
from treeopo.inspect.tokens import missing_opening
from treeopo.problems.problem_set import ProblemSet
from treeopo.problems.prompting import Prompter, PromptSettings
from treeopo.problems.solutions import SolutionSettings, worked_solutions
from treeopo.run.questions import make_questions


# huggingface/trl#3520, EleutherAI/lm-evaluation-harness#1465, #1854, #2049, #3430, huggingface/transformers#29250
@pytest.mark.parametrize("style", ["plain", "chat"])
def test_a_prompt_begins_with_exactly_one_beginning_of_text_token(tmp_path: Path, style: str) -> None:
    tokenizer = saved(tmp_path / "model", byte_level(), bos=True, chat="{{ bos_token }}" + CHAT)
    bos = tokenizer.hf.bos_token_id
    root = open_store(build(tmp_path, tokenizer, prompt={"style": style})).problem(0)
    prefix = root.prefix_tokens(root.node_count - 1).tolist()
    assert prefix[0] == bos
    assert prefix.count(bos) == 1
    settings = PromptSettings(style=style)  # type: ignore[arg-type]
    (question,) = make_questions(tokenizer, settings, ProblemSet("numbers", (PROBLEM,)))  # what eval asks
    assert question.prompt_ids == root.prefix_tokens(0).tolist()


def test_examples_before_a_question_bring_no_further_one(tmp_path: Path) -> None:
    tokenizer = saved(tmp_path / "model", byte_level(), bos=True)
    rows = [{"question": f"Is it {n}?", "answer": f"It is {n}.\n#### {n}"} for n in (1, 2)]
    (tmp_path / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = PromptSettings(shots=2, examples=str(tmp_path / "examples.jsonl"))
    ids = Prompter(tokenizer, settings, ProblemSet("numbers", (PROBLEM,)))(PROBLEM)
    assert (ids[0], ids.count(ids[0])) == (tokenizer.hf.bos_token_id, 1)


def test_a_text_begins_as_the_tokenizer_itself_begins_it(tmp_path: Path) -> None:
    for number, backend in enumerate((byte_level(("Ċ", "Ċ")), metaspace("always"), metaspace("first"))):
        for bos in (False, True):
            tokenizer = saved(tmp_path / f"{number}{bos}", backend, bos=bos)
            assert tokenizer.begin("so 2+3\n\nso") == tokenizer.hf.encode("so 2+3\n\nso")


# volcengine/verl and open-r1#462, vllm-project/vllm#27486, sgl-project/sglang#888
def test_a_template_that_writes_the_token_itself_gets_no_second_one(tmp_path: Path) -> None:
    tokenizer = saved(tmp_path / "model", byte_level(), bos=True)
    (tmp_path / "template.txt").write_text(BOS + "Q {question}\n\n")
    settings = PromptSettings(template=tmp_path / "template.txt")
    ids = Prompter(tokenizer, settings, ProblemSet("numbers", (PROBLEM,)))(NAMES_ONE)
    assert (ids[0], ids.count(ids[0])) == (tokenizer.hf.bos_token_id, 1)
    assert ids[1:3] == tokenizer.encode("Q ")


# vllm-project/vllm#11691, huggingface/transformers#30772
@pytest.mark.parametrize("style", ["plain", "chat"])
def test_a_special_token_that_a_question_names_stays_text(tmp_path: Path, style: str) -> None:
    tokenizer = saved(tmp_path / "model", byte_level(), bos=True, chat=CHAT)
    settings = PromptSettings(style=style)  # type: ignore[arg-type]
    prompter = Prompter(tokenizer, settings, ProblemSet("numbers", (PROBLEM,)))
    ids = prompter(NAMES_ONE)
    assert ids.count(tokenizer.eos_token_id) == (style == "chat")  # the template ends a turn with it
    assert NAMES_ONE.question in tokenizer.decode(ids)
    assert prompter(PROBLEM)[-1:] == ids[-1:]
    assert ids.count(tokenizer.hf.bos_token_id) == (style == "plain")  # a chat template says for itself how it begins
    assert tokenizer.eos_token_id not in tokenizer.encode(NAMES_ONE.question)
    assert tokenizer.eos_token_id not in prompter.instruct(f"{EOS} and {EOS}")[:-20]


def test_an_escaped_text_reads_as_before_whatever_it_holds(tmp_path: Path) -> None:
    tokenizer = saved(tmp_path / "model", byte_level())
    for text in (EOS, f"a{EOS}{BOS}b", "\ufdd0", f"\ufdd0{EOS}\ufdd0", "", "<|endof", "\ufdd0\ufdd0s"):
        assert tokenizer.begin(tokenizer.escape(text)) == tokenizer.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_tokenizer_that_cannot_keep_a_name_as_text_says_which_problem(tmp_path: Path) -> None:
    pieces = [EOS, BOS, "<unk>", *map(chr, range(32, 127)), "\n"]
    unigram = Tokenizer(Unigram([(piece, -float(len(piece) == 1)) for piece in pieces], 2))
    unigram.decoder = Fuse()
    tokenizer = saved(tmp_path / "model", unigram)
    with pytest.raises(ModelError, match=r"problem 'names': '<\|endoftext\|>' in a text is a special token that"):
        Prompter(tokenizer, PromptSettings(), ProblemSet("numbers", (PROBLEM,)))(NAMES_ONE)


def test_a_store_whose_prompts_lack_the_token_is_told_of_in_one_line(tmp_path: Path) -> None:
    tokenizer = saved(tmp_path / "model", byte_level(), bos=True)
    plain = saved(tmp_path / "plain", byte_level())
    create_store(tmp_path / "old.zarr", StoreMeta(tokenizer.fingerprint, teacher="nobody"))
    with open_writer(tmp_path / "old.zarr") as writer:
        writer.append([random_tree("p", 1, nodes=4, vocabulary=200)])
    warning = missing_opening(open_store(tmp_path / "old.zarr"), tokenizer)
    assert warning is not None
    assert warning.startswith("warning: 1 of 1 prompts looked at in the store do not begin with <s>")
    assert "\n" not in warning
    assert missing_opening(open_store(tmp_path / "old.zarr"), plain) is None
    assert missing_opening(open_store(build(tmp_path, tokenizer)), tokenizer) is None


THINKING = (
    "{% for message in messages %}[{{ message.role }}]"
    "{% if message.role == 'assistant' %}{{ message.content.split('</think>')[-1] }}"
    "{% else %}{{ message.content }}{% endif %}{% endfor %}[assistant]"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)


def with_examples(tmp_path: Path, *solutions: str) -> dict[str, object]:
    rows = [{"question": f"Is it {n}?", "answer": f"{solution}\n#### {n}"} for n, solution in enumerate(solutions)]
    (tmp_path / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"shots": len(rows), "examples": str(tmp_path / "examples.jsonl")}


# volcengine/verl#6854, PrimeIntellect-ai/prime-rl#1334, modelscope/ms-swift#4390, QwenLM/Qwen3#1826
def test_a_template_that_shortens_worked_examples_is_told_of_in_one_line(tmp_path: Path) -> None:
    tokenizer = saved(tmp_path / "model", byte_level(), chat=THINKING)
    settings = with_examples(tmp_path, "<think>count</think>two", "  so it is")
    notices: list[str] = []
    Prompter(tokenizer, PromptSettings(style="chat", **settings), ProblemSet("numbers", (PROBLEM,)), notices.append)  # type: ignore[arg-type]
    (notice,) = notices
    assert notice.startswith("warning: the chat template shows 1 of 2 worked examples otherwise than they are written")
    assert "\n" not in notice
    settings = with_examples(tmp_path, "it is two", "  so it is")
    Prompter(tokenizer, PromptSettings(style="chat", **settings), ProblemSet("numbers", (PROBLEM,)), notices.append)  # type: ignore[arg-type]
    assert notices == [notice]


def test_build_and_eval_pass_the_notice_on(tmp_path: Path) -> None:
    tokenizer = saved(tmp_path / "model", byte_level(), chat=THINKING)
    prompt = {"style": "chat"} | with_examples(tmp_path, "<think>count</think>two")
    notices: list[str] = []
    build(tmp_path, tokenizer, notify=notices.append, prompt=prompt)
    assert notices[0].startswith("warning: the chat template shows 1 of 1 worked examples")
    make_questions(tokenizer, PromptSettings(**prompt), ProblemSet("numbers", (PROBLEM,)), notices.append)  # type: ignore[arg-type]
    assert notices[-1] == notices[0]


# trl#6361, unslothai/unsloth#334
def test_a_chat_template_takes_arguments_and_one_it_does_not_know_is_refused(tmp_path: Path) -> None:
    tokenizer = saved(tmp_path / "model", byte_level(), chat=THINKING)

    def asked(**chat_arguments: bool) -> str:
        settings = PromptSettings(style="chat", chat_arguments=dict(chat_arguments))
        return tokenizer.decode(Prompter(tokenizer, settings, ProblemSet("numbers", (PROBLEM,)))(PROBLEM))

    assert asked().endswith("[assistant]")
    assert asked(enable_thinking=False) == asked() + "<think>\n\n</think>\n\n"
    assert asked(enable_thinking=True) == asked()
    with pytest.raises(ModelError, match=r"^prompt\.chat_arguments: .* asks for no 'enable_thinkng'; leave it out$"):
        asked(enable_thinkng=False)
    with pytest.raises(ModelError, match="asks for no 'messages'"):
        asked(messages=False)
    with pytest.raises(ConfigError, match=r"set prompt\.style to chat"):
        PromptSettings(chat_arguments={"enable_thinking": False})


def test_retokenising_chat_prompts_tells_what_they_lose(tmp_path: Path) -> None:
    tokenizer = saved(tmp_path / "model", byte_level(), chat=CHAT)
    store = str(build(tmp_path, tokenizer, prompt={"style": "chat"}))
    model = ["--tokenizer", str(tmp_path / "model")]
    assert "their texts lack its special tokens" in typed("store", "retokenize", store, "-o", f"{store}2", *model)
    shutil.rmtree(store)
    store = str(build(tmp_path, tokenizer))
    assert "special tokens" not in typed("store", "retokenize", store, "-o", f"{store}3", *model)


def test_the_arguments_can_be_typed_and_are_kept_with_the_store(tmp_path: Path) -> None:
    from treeopo_cli.options import settings

    tokenizer = saved(tmp_path / "model", byte_level(), chat=THINKING)
    for typed_ in ("prompt.chat_arguments.enable_thinking=false", "prompt.chat_arguments={enable_thinking=false}"):
        flags = settings([typed_, "prompt.style=chat"]) | {"problems": "p", "output": tmp_path / "t.zarr"}
        config = load_config(BuildConfig, file=None, flags=flags)
        assert config.prompt.chat_arguments == {"enable_thinking": False}
    with_them = open_store(build(tmp_path, tokenizer, prompt=asdict(config.prompt)))
    assert with_them.meta.search["prompt"]["chat_arguments"] == {"enable_thinking": False}  # type: ignore[index]
    shutil.rmtree(tmp_path / "t.zarr")
    without = open_store(build(tmp_path, tokenizer, prompt={"style": "chat"}))
    assert "chat_arguments" not in without.meta.search["prompt"]  # type: ignore[operator]  # as an earlier version left it


TURNS = (
    "{% for message in messages %}<s>{{ message.role }}: {{ message.content }}<turn>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def with_turns(path: Path, ends: list[int] | None) -> ModelTokenizer:
    """A tokenizer whose chat template ends a turn by a token that is not its end of text; ends: those of the model."""
    backend = byte_level()
    backend.add_special_tokens([AddedToken("<turn>", special=True)])
    tokenizer = saved(path, backend, chat=TURNS)
    if ends is not None:
        GenerationConfig(eos_token_id=ends).save_pretrained(path)
    return ModelTokenizer(str(path)) if ends is not None else tokenizer


def notices(tokenizer: ModelTokenizer, **settings: Any) -> list[str]:
    told: list[str] = []
    Prompter(tokenizer, PromptSettings(**settings), ProblemSet("numbers", (PROBLEM,)), told.append)
    return told


# Qwen/Qwen2.5's base models come with the template of the others, and end where it does not
def test_an_instruct_model_that_is_asked_plainly_is_told_of_once_and_a_base_model_with_a_template_is_not(
    tmp_path: Path,
) -> None:
    turn = with_turns(tmp_path / "base", None).hf.convert_tokens_to_ids("<turn>")
    base, instruct = with_turns(tmp_path / "base", None), with_turns(tmp_path / "instruct", [0, turn])
    ended = saved(tmp_path / "ended", byte_level(), chat=CHAT)
    bare = saved(tmp_path / "bare", byte_level())
    assert [each.is_instruct for each in (base, instruct, ended, bare)] == [False, True, True, False]
    for tokenizer in (instruct, ended):
        (notice,) = notices(tokenizer)
        assert "give --prompt chat" in notice
        assert notices(tokenizer, style="chat") == []
    assert notices(base) == notices(bare) == []
    assert not saved(tmp_path / "refuses", byte_level(), chat="{{ raise_exception('no') }}").is_instruct


# google/gemma-3's instruct models: the tokenizer's end of text is <eos>, an answer ends in <end_of_turn>
@pytest.mark.parametrize(("style", "ends_in_turn"), [("chat", True), ("plain", False)])
def test_a_solution_to_learn_from_ends_as_an_answer_of_the_model_does(
    tmp_path: Path, style: Literal["plain", "chat"], ends_in_turn: bool
) -> None:
    turn = with_turns(tmp_path / "base", None).hf.convert_tokens_to_ids("<turn>")
    instruct = with_turns(tmp_path / "instruct", [0, turn])
    (tmp_path / "p.jsonl").write_text('{"question": "2+3?", "answer": "2+3=5\\n#### 5"}\n')
    settings = SolutionSettings(str(tmp_path / "p.jsonl"), prompt=PromptSettings(style=style))
    ((_, solution),) = worked_solutions(settings, instruct)
    assert solution[-1] == (turn if ends_in_turn else instruct.eos_token_id)
    assert set(instruct.answer_ends(chat=True)) == set(instruct.answer_ends(chat=False)) >= {0, turn}
    base = with_turns(tmp_path / "base", None)  # has the template, and does not stop there
    assert base.answer_ends(chat=True) == (base.eos_token_id,)
