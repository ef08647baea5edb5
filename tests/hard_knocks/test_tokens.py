"""Tokens are those that the tokenizer gives for the whole text: where it begins, where steps meet, what it names."""

import json
import random
from pathlib import Path

import pytest
from treeopo_storage import StoreMeta, create_store, open_store, open_writer
from treeopo_storage.conformance import random_tree

from tests.hard_knocks.odd_tokenizers import BOS, CHAT, EOS, byte_level, metaspace, saved
from treeopo.config import BuildConfig
from treeopo.engines.scripted import Pieces, ScriptedEngine
from treeopo.engines.settings import Adapters, EngineOptions
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.errors import ModelError
from treeopo.inspect.tokens import missing_opening
from treeopo.jobs.build import build_store
from treeopo.problems.problem_set import ProblemSet
from treeopo.problems.prompting import Prompter, PromptSettings
from treeopo.records import Problem
from treeopo.run.questions import make_questions

PROBLEM = Problem("sum", "What is 2+3+4?", "9")
NAMES_ONE = Problem("names", f"What does {EOS} mean in 3+4?", "7")


def talk(prompt: str, rng: random.Random, version: int) -> Pieces:
    return [(f"{rng.randrange(9)}\n\n", -1.0), ("#### 9", -1.0)]


def build(tmp_path: Path, tokenizer: ModelTokenizer, **settings: object) -> Path:
    """`treeopo mcts build` of `PROBLEM` by a scripted teacher; the store's path."""
    (tmp_path / "p.jsonl").write_text(json.dumps({"question": PROBLEM.question, "answer": "It is 9.\n#### 9"}) + "\n")
    teacher, output = tokenizer.hf.name_or_path, tmp_path / "t.zarr"
    values = {"problems": str(tmp_path / "p.jsonl"), "teacher": teacher, "output": output}

    async def start(model: str, options: EngineOptions, adapters: Adapters | None) -> ScriptedEngine:
        return ScriptedEngine(talk, tokenizer)

    config = BuildConfig.model_validate(values | {"search": {"rollouts": 4}} | settings)
    build_store(config, lambda notice: None, lambda *progress: None, start)
    return output


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
    assert tokenizer.eos_token_id not in tokenizer.encode(NAMES_ONE.question)
    assert tokenizer.eos_token_id not in prompter.instruct(f"{EOS} and {EOS}")[:-20]


def test_an_escaped_text_reads_as_before_whatever_it_holds(tmp_path: Path) -> None:
    tokenizer = saved(tmp_path / "model", byte_level())
    for text in (EOS, f"a{EOS}{BOS}b", "\ufdd0", f"\ufdd0{EOS}\ufdd0", "", "<|endof", "\ufdd0\ufdd0s"):
        assert tokenizer.begin(tokenizer.escape(text)) == tokenizer.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_tokenizer_that_cannot_keep_a_name_as_text_says_which_problem(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models

    pieces = [EOS, BOS, "<unk>", *map(chr, range(32, 127)), "\n"]
    unigram = Tokenizer(models.Unigram([(piece, -float(len(piece) == 1)) for piece in pieces], 2))
    unigram.decoder = decoders.Fuse()
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
