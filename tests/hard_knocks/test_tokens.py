"""Tokens are those that the tokenizer gives for the whole text: where it begins, where steps meet, what it names."""

import json
import random
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import Unigram, WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig
from treeopo_cli.main import app as commands
from treeopo_storage import (
    Action,
    MemoryTreeStore,
    ProblemTree,
    StoreMeta,
    TokenizerMismatchError,
    TreeStore,
    create_store,
    open_store,
    open_writer,
)
from treeopo_storage.conformance import random_tree
from treeopo_storage.formats import read_traces, traces_among
from treeopo_storage.interchange import merged_meta, trees_from_traces
from treeopo_storage.joint import encode_tree
from treeopo_storage.retokenize import Retokenized, retokenize
from treeopo_storage.verify import verify_store
from typer.testing import CliRunner

from tests.hard_knocks.odd_tokenizers import BOS, CHAT, EOS, byte_level, llama2, metaspace, saved
from treeopo.config import BuildConfig, TrainConfig, load_config
from treeopo.engines.scripted import CharTokenizer, Pieces, ScriptedEngine, ScriptedPolicy
from treeopo.engines.settings import Adapters, EngineOptions
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.errors import ConfigError, InputError, ModelError
from treeopo.inspect.tokens import canonical_prefixes, check_ids, missing_opening
from treeopo.jobs.build import build_store
from treeopo.jobs.train import train
from treeopo.ports import Notify
from treeopo.problems.problem_set import ProblemSet
from treeopo.problems.prompting import Prompter, PromptSettings
from treeopo.records import Problem
from treeopo.run.directory import RunDirectory
from treeopo.run.questions import make_questions
from treeopo.search.steps import StepSplitter
from treeopo.search.tree import GrowingTree

PROBLEM = Problem("sum", "What is 2+3+4?", "9")
NAMES_ONE = Problem("names", f"What does {EOS} mean in 3+4?", "7")


def talk(prompt: str, rng: random.Random, version: int) -> Pieces:
    return [(f"{rng.randrange(9)}\n\n", -1.0), ("#### 9", -1.0)]


def build(
    tmp_path: Path,
    tokenizer: ModelTokenizer,
    engine: type[ScriptedEngine] = ScriptedEngine,
    policy: ScriptedPolicy = talk,
    notify: Notify = lambda notice: None,
    **settings: object,
) -> Path:
    """`treeopo mcts build` of `PROBLEM` by a scripted teacher; the store's path."""
    (tmp_path / "p.jsonl").write_text(json.dumps({"question": PROBLEM.question, "answer": "It is 9.\n#### 9"}) + "\n")
    teacher, output = tokenizer.hf.name_or_path, tmp_path / "t.zarr"
    values = {"problems": str(tmp_path / "p.jsonl"), "teacher": teacher, "output": output}

    async def start(model: str, options: EngineOptions, adapters: Adapters | None) -> ScriptedEngine:
        return engine(policy, tokenizer)

    config = BuildConfig.model_validate(values | {"search": {"rollouts": 4}} | settings)
    build_store(config, notify, lambda *progress: None, start)
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


def imported(tmp_path: Path, tokenizer: ModelTokenizer, *traces: Mapping[str, object]) -> ProblemTree:
    """The tree that `treeopo store import` makes of traces of one problem."""
    rows = [{"question": "2+3+4?", "answer": "9", "reward": 1, **trace} for trace in traces]
    (tmp_path / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = traces_among(read_traces([str(tmp_path / "traces.jsonl")]), Counter())
    (tree,) = trees_from_traces(found, "\n\n", tokenizer, end_of_text=[tokenizer.eos_token_id])
    return tree


def whole(tree: ProblemTree, node: int) -> str:
    return "".join(tree.texts[step] for step in tree.path(node))


def retokenized(tree: ProblemTree, tokenizer: ModelTokenizer) -> tuple[ProblemTree, Retokenized]:
    """The tree as `treeopo store retokenize` has it, and what that tells."""
    source, copy = MemoryTreeStore(StoreMeta("another", "nobody")), MemoryTreeStore(StoreMeta("this", "nobody"))
    source.open_writer().append([tree])
    done = retokenize(source.open_store(), copy.open_writer(), tokenizer, tokenizer.eos_token_id)
    return copy.open_store().problem(0), done


# huggingface/transformers#22710, #26273, #28776, huggingface/tokenizers#1141, #1258, allenai/catwalk#156
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize(
    "backend",
    [metaspace("always"), metaspace("first"), llama2(), byte_level(space=True), byte_level(("Ċ", "Ċ"), by_words=True)],
    ids=["always", "first", "llama2", "prefix space", "by words"],
)
def test_a_tree_of_texts_holds_the_tokens_of_whole_solutions(tmp_path: Path, backend: Tokenizer, bos: bool) -> None:
    tokenizer = saved(tmp_path / "model", backend, bos=bos)
    tree = imported(tmp_path, tokenizer, {"steps": ["2+3=5", "so it is é", " 5+4=9"]}, {"steps": ["2+3=5", "9"]})
    again, told = retokenized(tree, tokenizer)
    assert told == Retokenized(5, changed=0)
    for made, texts in ((tree, None), (again, tree.texts)):
        assert made.texts == (texts or ("2+3+4?", "2+3=5\n\n", "so it is é\n\n", " 5+4=9", "9"))
        ids = made.prefix_tokens(3).tolist()
        assert ids[: len(ids) - (texts is None)] == tokenizer.hf.encode(whole(made, 3))
        for node in range(5):
            assert tokenizer.reads_as(made.prefix_tokens(node).tolist(), whole(made, node))


def test_where_solutions_differ_about_a_step_s_tokens_the_most_visited_one_decides(tmp_path: Path) -> None:
    tokenizer = saved(tmp_path / "model", byte_level(("Ċ", "Ċ"), by_words=True))
    letter, space = {"steps": ["2+3=5", "So 9"]}, {"steps": ["2+3=5", " 9"]}
    two, one = tokenizer.hf.encode("5\n\nS")[1:-1], tokenizer.hf.encode("5\n\n 9")[1:-2]
    assert (len(two), len(one)) == (2, 1)
    for traces, ends in (((letter, space), two), ((space, letter), one), ((space, letter, letter), two)):
        tree = imported(tmp_path, tokenizer, *traces)
        assert tree.prefix_tokens(1).tolist()[-len(ends) :] == ends
        assert tree.prefix_tokens(1).tolist()[-len(ends) - 1] == tokenizer.encode("5")[0]
        for node in (2, 3):
            assert tokenizer.reads_as(tree.prefix_tokens(node).tolist(), whole(tree, node))


def test_a_token_that_reaches_into_the_next_step_takes_its_characters_along_where_all_solutions_have_it(
    tmp_path: Path,
) -> None:
    tokenizer = saved(tmp_path / "model", byte_level(("Ċ", "Ċ"), ("ĊĊ", "S")))
    agreed = imported(tmp_path, tokenizer, {"steps": ["2+3=5", "So 9"]}, {"steps": ["2+3=5", "Sum 9"], "reward": 0})
    assert agreed.texts[1:] == ("2+3=5\n\nS", "o 9", "um 9")
    assert agreed.prefix_tokens(2).tolist()[:-1] == tokenizer.hf.encode("2+3+4?2+3=5\n\nSo 9")
    split = imported(tmp_path, tokenizer, {"steps": ["2+3=5", "So 9"]}, {"steps": ["2+3=5", "9"], "reward": 0})
    assert split.texts[1:] == ("2+3=5\n\n", "So 9", "9")
    swallowed = imported(tmp_path, tokenizer, {"steps": ["2+3=5", "S"]})
    assert swallowed.texts[1:] == ("2+3=5\n\n", "S")
    for tree in (agreed, split, swallowed):
        for node in range(tree.node_count):
            assert tokenizer.reads_as(tree.prefix_tokens(node).tolist(), whole(tree, node))
    _, told = retokenized(replace(agreed, texts=("2+3+4?", "2+3=5\n\n", "So 9", "Sum 9")), tokenizer)
    assert str(told).endswith(
        "4 prefixes re-tokenised; 0 no longer decode to their text; the end of 1 moved to the end of the token there"
    )


@given(
    seed=st.integers(0, 10_000),
    merges=st.lists(
        st.sampled_from([("Ċ", "Ċ"), ("a", "Ċ"), ("Ċ", "b"), ("b", "a"), ("a", "b")]), max_size=4, unique=True
    ),
    by_words=st.booleans(),
)
def test_no_tree_loses_a_character_whatever_the_merges(
    seed: int, merges: list[tuple[str, str]], by_words: bool
) -> None:
    rng = random.Random(seed)
    nodes = rng.randrange(1, 9)
    parent = np.array([-1, *(rng.randrange(node) for node in range(1, nodes))], np.int32)
    texts = ["".join(rng.choices("ab\né", k=rng.randrange(1, 4))) for _ in range(nodes)]
    visits = np.array([rng.randrange(3) for _ in range(nodes)], np.int32)
    with TemporaryDirectory() as path:
        tokenizer = saved(Path(path), byte_level(*merges, by_words=by_words))
    joint = encode_tree("?", texts, parent, visits, tokenizer)
    prefix: dict[int, tuple[list[int], str, str]] = {-1: ([], "", "")}
    for node, up in enumerate(parent.tolist()):
        ids, read, given_text = prefix[up]
        assert len(joint.steps[node]) > 0
        prefix[node] = [*ids, *joint.steps[node].tolist()], read + joint.texts[node], given_text + texts[node]
        assert tokenizer.reads_as(prefix[node][0], prefix[node][1])
        assert prefix[node][1].startswith(prefix[node][2])  # what a token took along is the next step's
        if node not in parent:
            assert prefix[node][1] == prefix[node][2]


def test_special_tokens_of_a_rendered_prompt_are_tokens_and_those_of_question_and_steps_are_text(
    tmp_path: Path,
) -> None:
    tokenizer = saved(tmp_path / "model", byte_level(), bos=True)
    question = f"What is {EOS}?"
    trace = {"question": question, "prompt": f"{BOS}[user]{question}{EOS}[assistant]", "steps": [f"A name: {EOS}", "9"]}
    tree = imported(tmp_path, tokenizer, trace)
    ids = tree.prefix_tokens(2).tolist()
    assert ids.count(tokenizer.hf.bos_token_id) == 1
    assert [token for token in ids if token == tokenizer.eos_token_id] == [tokenizer.eos_token_id] * 2  # turn and end
    assert ids[-1] == tokenizer.eos_token_id
    assert all(tokenizer.reads_as(tree.prefix_tokens(node).tolist(), whole(tree, node)) for node in range(3))


def test_import_tells_of_texts_that_the_tokenizer_cannot_say(tmp_path: Path) -> None:
    words = Tokenizer(WordLevel({"?": 0, "2+3": 1, "5": 2}, unk_token="?"))
    words.pre_tokenizer = WhitespaceSplit()
    saved(tmp_path / "model", words)
    trace = {"question": "2+3 ?", "answer": "5", "steps": ["so it is", "5"], "reward": 1}
    (tmp_path / "traces.jsonl").write_text(json.dumps(trace) + "\n")
    made, model = ["-o", str(tmp_path / "t.zarr")], ["--tokenizer", str(tmp_path / "model")]
    told = typed("store", "import", str(tmp_path / "traces.jsonl"), *made, *model)
    assert told.rstrip().endswith("; 2 prefixes do not decode to their text")


def test_a_searched_step_reads_as_it_does_in_its_solution(tmp_path: Path) -> None:
    tokenizer = saved(tmp_path / "model", metaspace("first"), bos=True)
    steps = [
        tokenizer.begin("2+3=5?"),
        tokenizer.encode("so\n\n"),
        tokenizer.encode(" so it is"),
        tokenizer.encode("2"),
    ]
    growing = GrowingTree(np.array(steps[0], np.int32), 5)
    node = 0
    for ids in steps[1:]:
        logprobs = np.zeros(len(ids), np.float32)
        node, _ = growing.grow(node, np.array(ids, np.int32), logprobs, Action.STEP, tuple(ids))
    growing.end(node, 1.0)
    assert growing.freeze(PROBLEM, tokenizer).texts == ("2+3=5?", "so\n\n", " so it is", "2")


def one_by_one(tree: ProblemTree, tokenizer: ModelTokenizer) -> ProblemTree:
    """Its tokens as treeopo 0.1 made them: every step encoded as a text of its own."""
    steps = [tokenizer.hf.encode(text, add_special_tokens=False) for text in tree.texts]
    ids = np.array([token for step in steps for token in step], np.int32)
    return replace(
        tree,
        token_ids=ids,
        token_offsets=np.cumsum([0, *map(len, steps)]),
        teacher_logprobs=np.full(len(ids), np.nan, np.float32),
    )


def stored(path: Path, tokenizer: ModelTokenizer, *trees: ProblemTree) -> TreeStore:
    create_store(path, StoreMeta(tokenizer.fingerprint, teacher=tokenizer.hf.name_or_path))
    with open_writer(path) as writer:
        writer.append(trees)
    return open_store(path)


@pytest.mark.parametrize(
    "backend", [metaspace("always"), byte_level(("Ċ", "Ċ"), by_words=True)], ids=["space", "words"]
)
def test_the_share_of_canonical_prefixes_tells_whole_solutions_from_steps_one_by_one(
    tmp_path: Path, backend: Tokenizer
) -> None:
    tokenizer = saved(tmp_path / "model", backend)
    tree = imported(tmp_path, tokenizer, {"steps": ["so it", "so 2+3=5", "so 9"]}, {"steps": ["so it", "so 8"]})
    made = canonical_prefixes(stored(tmp_path / "made.zarr", tokenizer, tree), tokenizer)
    assert (made.canonical, made.looked_at) == (5, 5)
    assert made.told == "prefixes with the tokens that the tokenizer gives for their text: 5 of 5 looked at (100.0%)"
    parts = canonical_prefixes(stored(tmp_path / "parts.zarr", tokenizer, one_by_one(tree, tokenizer)), tokenizer)
    assert (parts.canonical, parts.looked_at) in {
        (1, 5),
        (2, 5),
    }  # the root; by words its child too, which ends as it is
    assert parts.told.startswith("warning: ")
    assert "\n" not in parts.told


def test_solutions_that_part_from_a_more_visited_one_where_tokens_differ_are_counted(tmp_path: Path) -> None:
    tokenizer = saved(tmp_path / "model", byte_level(("Ċ", "Ċ"), by_words=True))
    tree = imported(tmp_path, tokenizer, {"steps": ["2+3=5", "So 9"]}, {"steps": ["2+3=5", " 9"]})
    found = canonical_prefixes(stored(tmp_path / "t.zarr", tokenizer, tree), tokenizer)
    assert (found.canonical, found.looked_at) == (3, 4)


@pytest.mark.parametrize("style", ["plain", "chat"])
def test_what_a_teacher_wrote_is_canonical_where_it_writes_as_its_tokenizer_does(tmp_path: Path, style: str) -> None:
    tokenizer = saved(tmp_path / "model", byte_level(("Ċ", "Ċ")), bos=True, chat="{{ bos_token }}" + CHAT)
    store = open_store(build(tmp_path, tokenizer, prompt={"style": style}))
    assert canonical_prefixes(store, tokenizer).share == 1
    assert canonical_prefixes(store, saved(tmp_path / "other", byte_level(("9", "Ċ")), bos=True)).share < 1


def test_a_large_store_is_looked_at_here_and_there(tmp_path: Path) -> None:
    tokenizer = saved(tmp_path / "model", byte_level())
    tree = imported(tmp_path, tokenizer, {"steps": ["so", "9"]})
    trees = [replace(tree, id=f"p{number}") for number in range(40)]
    store = stored(tmp_path / "t.zarr", tokenizer, *trees[:20], one_by_one(trees[20], tokenizer), *trees[21:])
    assert canonical_prefixes(store, tokenizer, limit=30).looked_at == 30
    assert canonical_prefixes(MemoryTreeStore(store.meta).open_store(), tokenizer).looked_at == 0


def test_info_and_inspect_tree_tell_the_share_where_they_know_the_tokenizer(tmp_path: Path) -> None:
    tokenizer = saved(tmp_path / "model", metaspace("always"))
    tree = imported(tmp_path, tokenizer, {"steps": ["so it", "9"]})
    stored(tmp_path / "t.zarr", tokenizer, one_by_one(tree, tokenizer))
    info = ["store", "info", str(tmp_path / "t.zarr")]
    assert "canonical prefixes     1 of 3 looked at (33.3%)" in typed(*info)
    assert json.loads(typed(*info, "--json"))["canonical_prefixes"] == pytest.approx(1 / 3)
    assert "their text: 1 of 3 looked at" in " ".join(typed("inspect-tree", str(tmp_path / "t.zarr")).split())
    shutil.rmtree(tmp_path / "model")
    assert "canonical prefixes     not looked at; give --tokenizer" in typed(*info)
    assert json.loads(typed(*info, "--json"))["canonical_prefixes"] is None
    saved(tmp_path / "elsewhere", metaspace("always"))
    assert "1 of 3 looked at" in typed(*info, "--tokenizer", str(tmp_path / "elsewhere"))
    saved(tmp_path / "another", byte_level())
    with pytest.raises(TokenizerMismatchError):
        typed(*info, "--tokenizer", str(tmp_path / "another"))


def typed(*arguments: str) -> str:
    return CliRunner().invoke(commands, arguments, catch_exceptions=False).output


def test_a_run_begins_by_telling_the_share(tmp_path: Path) -> None:
    tokenizer = saved(tmp_path / "model", metaspace("always"))
    tree = imported(tmp_path, tokenizer, {"steps": ["so it", "9"]})
    stored(tmp_path / "t.zarr", tokenizer, one_by_one(tree, tokenizer))
    config = TrainConfig(store=tmp_path / "t.zarr", student=str(tmp_path / "model"), output=tmp_path / "run")
    notices: list[str] = []
    # There is no model beside the tokenizer: the run ends when it is asked for, after the store was looked at.
    with pytest.raises(InputError):
        train(RunDirectory.create(config), notices.append, lambda step, metrics: None)
    assert notices[0].startswith("warning: prefixes with the tokens that the tokenizer gives for their text: 1 of 3 ")


class Padding(ScriptedEngine):
    """Samples a row of the head that no token of the tokenizer belongs to, after each piece."""

    def _lay_out(self, pieces: Pieces) -> tuple[list[int], list[float]]:
        token_ids, logprobs = super()._lay_out(pieces)
        return [*token_ids, ROWS - 1], [*logprobs, -5.0]


ROWS = 258 + 64


def padded(path: Path) -> ModelTokenizer:
    """A tokenizer of 258 tokens beside a model of 64 logits more."""
    saved(path, byte_level())
    LlamaConfig(vocab_size=ROWS).save_pretrained(path)
    return ModelTokenizer(str(path))


# vllm-project/vllm#13175, #22471, NVIDIA-NeMo/RL#237, volcengine/verl#1398, QwenLM/Qwen3#885
def test_a_sampled_padding_row_is_a_token_without_text(tmp_path: Path) -> None:
    tokenizer = padded(tmp_path / "model")
    assert (len(tokenizer.hf), tokenizer.vocabulary_size) == (258, ROWS)
    store = open_store(build(tmp_path, tokenizer, Padding))
    tree = store.problem(0)
    assert ROWS - 1 in tree.token_ids
    assert store.meta.vocabulary_size == ROWS
    assert all(set(text) <= set("012345678\n# ") | {"9"} for text in tree.texts[1:])
    verify_store(tmp_path / "t.zarr")


def test_a_build_that_such_a_row_ended_goes_on(tmp_path: Path) -> None:
    tokenizer = padded(tmp_path / "model")
    meta = open_store(build(tmp_path, tokenizer)).meta
    shutil.rmtree(tmp_path / "t.zarr")
    create_store(tmp_path / "t.zarr", replace(meta, vocabulary_size=len(tokenizer.hf)))
    assert ROWS - 1 in open_store(build(tmp_path, tokenizer, Padding)).problem(0).token_ids
    assert open_store(tmp_path / "t.zarr").meta == meta


def test_a_student_with_fewer_rows_is_refused_where_it_lacks_one(tmp_path: Path) -> None:
    tokenizer = padded(tmp_path / "model")
    store = open_store(build(tmp_path, tokenizer, Padding))
    check_ids(store, ROWS)
    with pytest.raises(ModelError, match=f"the store holds token {ROWS - 1} .* and the student has 258 tokens: use"):
        check_ids(store, 258)
    (tmp_path / "clean").mkdir()
    check_ids(open_store(build(tmp_path / "clean", tokenizer)), 258)  # a larger head alone is no reason


def test_stores_of_heads_of_different_size_are_merged() -> None:
    small, large = (
        MemoryTreeStore(StoreMeta("tokens", "t", vocabulary_size=size)).open_store() for size in (258, ROWS)
    )
    unknown = MemoryTreeStore(StoreMeta("tokens", "t")).open_store()
    assert merged_meta([small, large]).vocabulary_size == ROWS
    assert merged_meta([small, unknown]).vocabulary_size is None


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

    def asked(**template_args: bool) -> str:
        settings = PromptSettings(style="chat", template_args=dict(template_args))
        return tokenizer.decode(Prompter(tokenizer, settings, ProblemSet("numbers", (PROBLEM,)))(PROBLEM))

    assert asked().endswith("[assistant]")
    assert asked(enable_thinking=False) == asked() + "<think>\n\n</think>\n\n"
    assert asked(enable_thinking=True) == asked()
    with pytest.raises(ModelError, match="template_args: the model's chat template asks for no 'enable_thinkng'"):
        asked(enable_thinkng=False)
    with pytest.raises(ModelError, match="asks for no 'messages'"):
        asked(messages=False)
    with pytest.raises(ConfigError, match=r"set prompt\.style to chat"):
        PromptSettings(template_args={"enable_thinking": False})


def test_the_arguments_can_be_typed_and_are_kept_with_the_store(tmp_path: Path) -> None:
    from treeopo_cli.options import settings

    tokenizer = saved(tmp_path / "model", byte_level(), chat=THINKING)
    for typed_ in ("prompt.template_args.enable_thinking=false", "prompt.template_args={enable_thinking=false}"):
        flags = settings([typed_, "prompt.style=chat"]) | {"problems": "p", "output": tmp_path / "t.zarr"}
        config = load_config(BuildConfig, file=None, flags=flags)
        assert config.prompt.template_args == {"enable_thinking": False}
    with_them = open_store(build(tmp_path, tokenizer, prompt=asdict(config.prompt)))
    assert with_them.meta.search["prompt"]["template_args"] == {"enable_thinking": False}  # type: ignore[index]
    shutil.rmtree(tmp_path / "t.zarr")
    without = open_store(build(tmp_path, tokenizer, prompt={"style": "chat"}))
    assert "template_args" not in without.meta.search["prompt"]  # type: ignore[operator]  # as an earlier version left it


# vllm-project/vllm#3672, andyclsr/CAPO#1
@pytest.mark.parametrize(
    ("pieces", "steps"),
    [
        (["x", "\n\n", "\n\n", "y"], ["x\n\n\n\n", "y"]),
        (["x", ".\n\n", "\n\n\n", " \n\n", "y", "\n\n"], ["x.\n\n\n\n\n \n\n", "y\n\n"]),
        (["\n\n", "x", "\n\n", "y"], ["\n\nx\n\n", "y"]),
        (["\r\n\r\n", "\n\n", "x"], ["\r\n\r\n\n\nx"]),
        (["\n\n", "\n\n"], ["\n\n\n\n"]),
    ],
)
def test_separators_alone_are_no_step(pieces: list[str], steps: list[str]) -> None:
    vocabulary = sorted(set(pieces))
    splitter = StepSplitter(Pieced(vocabulary), "\n\n", "")
    ends, end, _ = splitter.split([vocabulary.index(piece) for piece in pieces])
    cuts = [0, *ends, *([end] if end not in ends else [])]
    assert ["".join(pieces[start:stop]) for start, stop in pairwise(cuts)] == steps


@pytest.mark.parametrize(
    ("steps", "texts"),
    [
        (["a", "\n\n", " ", "9"], ("a\n\n\n\n \n\n", "9")),
        (["\n", "a", "9"], ("\n\n\na\n\n", "9")),
        (["a", "9", "\n"], ("a\n\n", "9\n\n\n")),
        (["\n\n"], ("\n\n",)),
    ],
)
def test_neither_are_they_in_an_imported_trace(tmp_path: Path, steps: list[str], texts: tuple[str, ...]) -> None:
    tree = imported(tmp_path, saved(tmp_path / "model", byte_level()), {"steps": steps})
    assert tree.texts[1:] == texts
    assert tree.terminal.tolist() == [False] * (tree.node_count - 1) + [True]


class Pieced(CharTokenizer):
    """Token i is the i-th piece."""

    eos_token_id = -1

    def __init__(self, pieces: Sequence[str]) -> None:
        self._pieces = pieces

    def decode(self, token_ids: list[int]) -> str:
        return "".join(self._pieces[token] for token in token_ids)


def blank_first(prompt: str, rng: random.Random, version: int) -> Pieces:
    """A teacher that often writes further blank lines before it goes on."""
    said = [("\n\n", -1.0)] * (0 if prompt.endswith("\n\n\n\n") else rng.randrange(3))
    return [*said, (f"{rng.randrange(9)}\n\n", -1.0), *said, ("#### 9", -1.0)]


def test_a_teacher_that_answers_with_blank_lines_is_asked_on(tmp_path: Path) -> None:
    tokenizer = saved(tmp_path / "model", byte_level())
    tree = open_store(build(tmp_path, tokenizer, policy=blank_first, search={"rollouts": 12})).problem(0)
    assert tree.node_count > 6
    assert all(text.strip() for text in tree.texts[1:])
    assert any(text.startswith("\n\n") for text in tree.texts[1:])
