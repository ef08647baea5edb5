"""Rows out, traces in, stores merged, tokens re-made."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from treeopo_storage import (
    EmptyStoreError,
    MemoryTreeStore,
    ProblemTree,
    StoreAccessError,
    StoreExistsError,
    StoreMeta,
    TokenizerMismatchError,
    TreeDataError,
    TreeStore,
)
from treeopo_storage.conformance import assert_same_tree, random_tree
from treeopo_storage.errors import FileFormatError
from treeopo_storage.formats import read_traces, traces_among
from treeopo_storage.interchange import copy_problems, export_jsonl, export_parquet, merged_meta, trees_from_traces
from treeopo_storage.joint import Encoded
from treeopo_storage.retokenize import Retokenized, check_tokenizer, retokenize, retokenized_meta
from treeopo_storage.summary import summarize

META = StoreMeta("0123456789abcdef", "teacher")


def store_of(trees: Sequence[ProblemTree], meta: StoreMeta = META) -> TreeStore:
    memory = MemoryTreeStore(meta)
    with memory.open_writer() as writer:
        writer.append(trees)
    return memory.open_store()


class Bytes:
    """`TreeTokenizer` of one token a byte of `errors`-encoded text; 0 ends a text."""

    def __init__(self, encoding: str = "utf-8") -> None:
        self._encoding = encoding

    def encode_solution(self, question: str, prompt: str, steps: str) -> Encoded:
        return self.encode_after(prompt + steps)

    def encode_after(self, text: str) -> Encoded:
        pieces = [(byte, at) for at, letter in enumerate(text) for byte in letter.encode(self._encoding, "replace")]
        ids, starts = np.array(pieces, np.int64).reshape(-1, 2).T
        return Encoded(ids.astype(np.int32), starts, starts + 1)

    def reads_as(self, token_ids: Sequence[int], text: str) -> bool:
        return bytes(token_ids).rstrip(b"\0").decode() == text


TOKENIZE = Bytes()


def test_exported_lines_say_what_the_tree_says(tmp_path: Path) -> None:
    trees = [random_tree(f"p{seed}", seed, nodes=9) for seed in range(3)]
    assert export_jsonl(store_of(trees), tmp_path / "rows.jsonl") == 27
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    for row, (tree, node) in zip(rows, [(tree, node) for tree in trees for node in range(9)], strict=True):
        text = "".join([row["prompt"], *row["prefix_steps"], row["completion"]])
        assert text == "".join(tree.texts[step] for step in tree.path(node))
        assert row["parent"] == tree.parent[node]
        assert row["visits"] * row["value"] == pytest.approx(tree.value_sum[node])
        assert (row["reward"] is None) == (not tree.terminal[node])
        assert row["terminal"] is bool(tree.terminal[node])
        assert len(row["prefix_steps"]) == max(int(tree.depth[node]) - 1, 0)


def test_datasets_loads_the_exported_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    datasets = pytest.importorskip("datasets")
    store = store_of([random_tree(f"p{seed}", seed, nodes=9) for seed in range(3)])
    export_jsonl(store, tmp_path / "rows.jsonl")
    assert export_parquet(store, tmp_path / "rows.parquet") == 27
    rows = datasets.Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path))
    assert {"prompt", "prefix_steps", "completion", "value", "visits", "reward"} <= set(rows.column_names)
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert rows.to_list() == lines


def test_an_export_never_overwrites_and_an_empty_store_exports_nothing(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("mine")
    with pytest.raises(StoreExistsError, match="already exists"):
        export_jsonl(store_of([random_tree("p", 1)]), tmp_path / "rows.jsonl")
    assert (tmp_path / "rows.jsonl").read_text() == "mine"
    with pytest.raises(EmptyStoreError, match="nothing to export"):
        export_jsonl(MemoryTreeStore(META).open_store(), tmp_path / "empty.jsonl")
    with pytest.raises(StoreAccessError, match="cannot be written"):
        export_jsonl(store_of([random_tree("p", 1)]), tmp_path / "no such folder" / "rows.jsonl")
    assert [entry.name for entry in tmp_path.iterdir()] == ["rows.jsonl"]


def traces_file(tmp_path: Path, *records: object) -> Path:
    path = tmp_path / "traces.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n\n")
    return path


def trace(steps: list[str], reward: float, **more: str) -> dict[str, object]:
    return {"question": "2+3+4?", "answer": "9", "steps": steps, "reward": reward, **more}


def imported(path: Path, end_of_text: Sequence[int] = ()) -> list[ProblemTree]:
    return trees_from_traces(
        traces_among(read_traces([str(path)]), Counter()), "\n\n", TOKENIZE, end_of_text=lambda prompt: end_of_text
    )


def test_traces_share_the_steps_they_begin_with(tmp_path: Path) -> None:
    path = traces_file(
        tmp_path,
        trace(["2+3=5", "5+4=9"], 1),
        trace(["2+3=5", "5+4=8"], 0),
        trace(["3+4=7", "so 9"], 1),
        trace(["other"], 0, id="q2"),
        trace(["2+3=5"], 0),
    )
    tree, other = imported(path, end_of_text=[0])
    assert tree.texts == ("2+3+4?", "2+3=5\n\n", "5+4=9", "5+4=8", "3+4=7\n\n", "so 9", "2+3=5")
    assert tree.parent.tolist() == [-1, 0, 1, 1, 0, 4, 0]
    assert tree.visits.tolist() == [4, 2, 1, 1, 1, 1, 1]
    assert tree.value_sum.tolist() == [2, 1, 1, 0, 1, 1, 0]
    assert tree.terminal.tolist() == [False, False, True, True, False, True, True]
    assert tree.prefix_tokens(2).tolist() == [*b"2+3+4?2+3=5\n\n5+4=9", 0]
    assert (tree.id, other.id) == ("2+3+4?", "q2")
    for ours, theirs in zip(store_of([tree, other]).problems(0, 2), [tree, other], strict=True):
        assert_same_tree(ours, theirs)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("a text", ":2: 'question' is missing: the row is the text 'a text', no object"),
        ({"question": "?", "answer": "1", "reward": 1}, ":2: 'steps' is missing"),
        (
            {"question": "?", "answer": ["1"], "steps": ["a"], "reward": 1},
            ":2: 'answer' is a list of 1; give a text",
        ),
        (trace([], 1), ":2: 'steps' is a list of 0; give a list of texts, at least one"),
        (trace(["a", ""], 1), ":2: 'steps' has an empty text at index 1"),
        (
            trace(["a"], 0),
            ":2: the same trace has reward 0.0 here and 1.0 at .*:1; give both their mean",
        ),
        (trace(["b"], 0) | {"answer": "8"}, ":2: problem '2.3.4.' has another answer here than at .*:1; give one an"),
        (trace(["b"], math.nan), ":2: 'reward' is NaN; it must be finite"),
    ],
)
def test_a_bad_trace_is_named_by_its_line(tmp_path: Path, record: object, message: str) -> None:
    with pytest.raises(TreeDataError, match=message):
        imported(traces_file(tmp_path, trace(["a"], 1), record))


def test_a_file_that_is_not_traces_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    for content, message in ((b"{", ":1: not JSON"), (b"a\n\xff", ":1: not a line of JSON"), (b"\xff", "is not UTF-8")):
        path.write_bytes(content)
        with pytest.raises(FileFormatError, match=message):
            imported(path)
    path.write_text("\n")
    with pytest.raises(EmptyStoreError, match="there are no traces in it"):
        imported(path)
    with pytest.raises(StoreAccessError, match="cannot be read: No such file"):
        imported(tmp_path / "absent")


def test_merging_keeps_every_problem_in_order() -> None:
    trees = [random_tree(f"p{seed}", seed) for seed in range(5)]
    parts = [
        store_of(trees[:2], replace(META, search={"depth": 5, "seed": 1})),
        store_of(trees[2:], replace(META, search={"depth": 5, "seed": 2})),
    ]
    meta = merged_meta(parts)
    assert meta.search == {"depth": 5, "parts": [{"depth": 5, "seed": 1}, {"depth": 5, "seed": 2}]}
    memory = MemoryTreeStore(meta)
    assert copy_problems(parts, memory.open_writer()) == 5
    for i, tree in enumerate(trees):
        assert_same_tree(memory.open_store().problem(i), tree)


def test_stores_of_another_tokenizer_or_with_a_common_problem_are_not_merged() -> None:
    first, again = store_of([random_tree("p", 1)]), store_of([random_tree("p", 2)])
    with pytest.raises(TreeDataError, match="problem 'p' is in more than one of the stores"):
        merged_meta([first, again])
    foreign = store_of([random_tree("q", 1)], replace(META, tokenizer_fingerprint="f"))
    with pytest.raises(TreeDataError, match="stores differ in tokenizer_fingerprint: '0123456789abcdef' and 'f'"):
        merged_meta([first, foreign])


def test_another_tokenizer_is_refused_in_one_line() -> None:
    check_tokenizer(META, "0123456789abcdef")
    with pytest.raises(
        TokenizerMismatchError, match="of tokenizer 0123456789abcdef, the student's is f; use a student"
    ):
        check_tokenizer(META, "f")


def test_retokenising_keeps_texts_and_step_boundaries() -> None:
    trees = [random_tree(f"p{seed}", seed, nodes=7) for seed in range(4)]
    memory = MemoryTreeStore(retokenized_meta(META, "bytes", vocabulary_size=256))
    assert retokenize(store_of(trees), memory.open_writer(), TOKENIZE, 0) == Retokenized(28, changed=0)
    for tree, ours in zip(trees, memory.open_store().problems(0, 4), strict=True):
        assert ours.texts == tree.texts
        assert TOKENIZE.reads_as(ours.prefix_tokens(6).tolist(), "".join(tree.texts[step] for step in tree.path(6)))
        assert np.isnan(ours.teacher_logprobs).all()


def test_retokenising_counts_the_prefixes_whose_text_changes() -> None:
    tree = replace(random_tree("p", 1, nodes=3), texts=("a question", "é", "plain"))
    tree.parent[:], tree.depth[:], tree.terminal[:] = [-1, 0, 0], [0, 1, 1], [False, True, True]
    tree.reward[:], tree.visits[:] = [np.nan, 0, 1], [3, 1, 1]
    memory = MemoryTreeStore(META)
    assert retokenize(store_of([tree]), memory.open_writer(), Bytes("ascii"), 0) == Retokenized(3, changed=1)


def test_the_summary_counts_what_is_there() -> None:
    tree = random_tree("p", 1, nodes=5)
    summary = summarize(store_of([tree, random_tree("alone", 2, nodes=1)]))
    assert (summary["problems"], summary["prefixes"]) == (2, 6)
    assert summary["terminal_prefixes"] == int(tree.terminal.sum()) + 1
    assert summary["longest_prefix_tokens"] == max(len(tree.prefix_tokens(node)) for node in range(5))
    assert summary["deepest_step"] == tree.depth.max()
