"""Trees made of texts hold the tokens that the tokenizer gives for whole solutions, and a store says how many do."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from treeopo_storage import (
    Action,
    MemoryTreeStore,
    ProblemTree,
    StoreMeta,
    TokenizerMismatchError,
    open_store,
)
from treeopo_storage.joint import encode_tree
from treeopo_storage.retokenize import Retokenized, retokenize

from tests.hard_knocks.odd_tokenizers import BOS, CHAT, EOS, byte_level, llama2, metaspace, saved
from tests.hard_knocks.small_stores import PROBLEM, build, imported, stored, typed, whole
from treeopo.config import TrainConfig
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.errors import InputError
from treeopo.inspect.tokens import CanonicalPrefixes, canonical_prefixes
from treeopo.jobs.train import train
from treeopo.run.directory import RunDirectory
from treeopo.search.tree import GrowingTree


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


@pytest.mark.parametrize(("room", "ends"), [(96, True), (8, False)])
def test_a_retokenised_solution_ends_as_the_teacher_ended_it(tmp_path: Path, room: int, ends: bool) -> None:
    teacher, student = saved(tmp_path / "model", byte_level()), saved(tmp_path / "student", metaspace("always"))
    (tmp_path / "store").mkdir()
    store = build(tmp_path / "store", teacher, search={"rollouts": 4, "max_solution_tokens": room})
    arguments = ["store", "retokenize", str(store), "--tokenizer", str(tmp_path / "student"), "-o"]
    assert "end-of-text" not in typed(*arguments, str(tmp_path / "new.zarr"))
    tree = open_store(tmp_path / "new.zarr").problem(0)
    lasts = tree.token_ids[tree.token_offsets[1:] - 1]
    assert (lasts == student.eos_token_id).tolist() == [ends and bool(terminal) for terminal in tree.terminal]
    shutil.rmtree(tmp_path / "model")
    told = typed(*arguments, str(tmp_path / "unknown.zarr"))
    assert "which solutions ended by themselves is not known" in told
    assert student.eos_token_id not in open_store(tmp_path / "unknown.zarr").problem(0).token_ids


def test_a_share_is_not_rounded_up_to_all() -> None:
    assert str(CanonicalPrefixes(2056, 2057)) == "2,056 of 2,057 looked at (99.9%)"
    assert str(CanonicalPrefixes(2057, 2057)) == "2,057 of 2,057 looked at (100.0%)"
