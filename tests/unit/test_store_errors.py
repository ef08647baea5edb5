"""Whatever a user points the store at, the answer is one clear line."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from treeopo_storage import (
    DamagedStoreError,
    MemoryTreeStore,
    NotAStoreError,
    SchemaVersionError,
    StoreAccessError,
    StoreError,
    StoreExistsError,
    StoreLockedError,
    StoreMeta,
    TreeDataError,
    create_store,
    open_store,
    open_writer,
)
from treeopo_storage.columnar import ColumnarStore
from treeopo_storage.conformance import assert_same_tree, random_tree
from treeopo_storage.files import read_range
from treeopo_storage.root import parse_root
from treeopo_storage.zarr_store import ZarrColumns

META = StoreMeta("0123456789abcdef", "teacher", {"rollouts": 16})


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original") / "trees.zarr"
    create_store(path, META)
    with open_writer(path) as writer:
        writer.append([random_tree(f"p{seed}", seed) for seed in range(5)])
    return path


@pytest.fixture
def path(original: Path, tmp_path: Path) -> Path:
    """A store of five problems to do harm to."""
    return Path(shutil.copytree(original, tmp_path / "trees.zarr"))


def test_importing_the_package_loads_neither_zarr_nor_torch() -> None:
    code = "import sys, treeopo_storage; assert not {'zarr', 'torch', 'treeopo', 'vllm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_error_is_one_line_and_a_store_error(tmp_path: Path) -> None:
    for wrong in (tmp_path, tmp_path / "absent", "unknown-scheme://x/y"):
        with pytest.raises(StoreError) as caught:
            open_store(wrong)
        assert "\n" not in str(caught.value)


def test_nothing_there_is_not_a_store(tmp_path: Path) -> None:
    with pytest.raises(NotAStoreError, match="there is no tree store at"):
        open_store(tmp_path / "absent")
    with pytest.raises(NotAStoreError, match="there is no tree store at"):
        open_writer(tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_and_a_file_are_not_stores(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("hello")
    for there in (tmp_path, tmp_path / "file"):
        with pytest.raises(NotAStoreError, match="is not a tree store"):
            open_store(there)


def test_another_kind_of_zarr_is_not_a_store(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "array.zarr", shape=(3,), dtype="i4")
    zarr.create_group(tmp_path / "group.zarr", attributes={"by": "someone else"})
    for other in ("array.zarr", "group.zarr"):
        with pytest.raises(NotAStoreError, match="is Zarr, but not a tree store"):
            open_store(tmp_path / other)


def test_a_store_is_never_created_over_something(path: Path) -> None:
    with pytest.raises(StoreExistsError, match="already exists"):
        create_store(path, META)
    with pytest.raises(StoreExistsError, match="already exists"):
        create_store(path.parent, META)
    assert open_store(path).problem_count == 5


def test_creating_leaves_nothing_behind_when_it_fails(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreAccessError, match="cannot create the store: Not a directory"):
        create_store(tmp_path / "file" / "trees.zarr", META)
    with pytest.raises(TreeDataError, match="cannot be written as JSON"):
        create_store(tmp_path / "trees.zarr", StoreMeta("", "", {"callback": print}))
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_relative_path_and_a_file_url_name_the_same_store(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    with open_writer("trees.zarr"), pytest.raises(StoreLockedError):
        open_writer(f"file://{path}")
    assert open_store("trees.zarr").problem_ids() == open_store(f"file://{path}").problem_ids()


def test_an_unknown_schema_version_is_refused(path: Path) -> None:
    root = json.loads((path / "zarr.json").read_text())
    root["attributes"]["schema_version"] = 99
    (path / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(
        SchemaVersionError, match="schema version 99, this treeopo reads 1; use the treeopo that wrote it"
    ):
        open_store(path)


def test_permission_denied_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("treeopo_storage.zarr_store.read_range", refuse)
    with pytest.raises(StoreAccessError, match="permission denied; cannot read the store"):
        open_store(path)


def test_any_damaged_byte_of_the_root_is_noticed(path: Path) -> None:
    data = read_range(path / "zarr.json")
    assert data is not None
    whole = parse_root(data, "here")
    for at in range(len(data)):
        damaged = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        try:
            # Bytes outside the attributes and blanks between them carry nothing of ours.
            assert parse_root(damaged, "here") == whole
        except StoreError:
            continue


def test_a_missing_a_short_and_a_changed_chunk_are_refused_when_read(path: Path) -> None:
    chunk = path / "tokens/id/c/0"
    data = chunk.read_bytes()
    for damage, message in (
        (data[:-9], "has .* bytes instead of"),
        (bytes([data[0] ^ 4]) + data[1:], "fails its checksum"),
    ):
        chunk.write_bytes(damage)
        with pytest.raises(DamagedStoreError, match=f"tokens/id row 0: its chunk tokens/id/c/0 {message}"):
            open_store(path).prefix_tokens(0, 0)
    chunk.unlink()
    with pytest.raises(DamagedStoreError, match="tokens/id/c/0 is missing"):
        open_store(path).prefix_tokens(0, 0)


def test_a_chunk_cut_short_under_an_open_reader_is_refused(path: Path) -> None:
    store = open_store(path)
    store.prefix_tokens(0, 0)
    (path / "tokens/id/c/0").write_bytes(b"")
    with pytest.raises(DamagedStoreError, match="is cut short"):
        store.prefix_tokens(1, 0)


def test_text_read_across_a_refresh_is_never_the_older_chunk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that began to read a text chunk before a commit must not leave it behind for readers of the commit."""
    source = ZarrColumns(path)
    store, decompress = ColumnarStore(source), source._decompress

    def decompress_while_a_writer_commits(column: str, chunk: int) -> bytes:
        older = decompress(column, chunk)
        monkeypatch.undo()
        with open_writer(path) as writer:
            writer.append([random_tree("new", 9)])
        assert store.refresh()
        return older

    monkeypatch.setattr(source, "_decompress", decompress_while_a_writer_commits)
    store.problem_id(0)
    assert_same_tree(store.problem(5), random_tree("new", 9))
    assert store.problem_id(5) == "new"


def test_damaged_text_is_refused(path: Path) -> None:
    chunk = path / "text/step/c/0"
    chunk.write_bytes(chunk.read_bytes()[:20])
    with pytest.raises(DamagedStoreError, match="text/step/c/0 fails its checksum"):
        open_store(path).problem(0)


def test_a_writer_does_not_build_on_a_damaged_chunk(path: Path) -> None:
    (path / "nodes/depth/c/0").unlink()
    with pytest.raises(DamagedStoreError, match="nodes/depth/c/0 is missing"):
        open_writer(path)
    assert not path.with_name("trees.zarr.lock").exists()


def test_a_missing_or_foreign_array_is_refused(path: Path) -> None:
    (path / "nodes/depth/zarr.json").unlink()
    with pytest.raises(DamagedStoreError, match="array nodes/depth is missing or unreadable"):
        open_store(path).problem(0)
    zarr.create_array(path / "nodes/depth", shape=(100,), dtype="i8", overwrite=True)
    with pytest.raises(DamagedStoreError, match="array nodes/depth was rewritten in another layout"):
        open_store(path).problem(0)


def test_plain_zarr_reads_every_array(path: Path) -> None:
    group: Any = zarr.open_group(path, mode="r")
    store = open_store(path)
    tree = store.problem(0)
    np.testing.assert_array_equal(group["nodes/parent"][: tree.node_count], tree.parent)
    np.testing.assert_array_equal(group["tokens/id"][: len(tree.token_ids)], tree.token_ids)
    end = int(group["nodes/text_end"][0])
    assert bytes(group["text/step"][:end]).decode() == tree.texts[0]
    assert group["nodes/depth"].shape == (store.node_count,)
    assert group.attrs["teacher"] == "teacher"


BROKEN_RULES = [
    ("parent", 0, 0, "nodes/parent of node 0: a problem's first node must be its root"),
    ("parent", 2, 2, "nodes/parent of node 2: a parent must come before its child"),
    ("parent", 2, -1, "nodes/parent of node 2: a parent must come before its child"),
    ("depth", 0, 1, "nodes/depth of node 0: a root's depth is 0"),
    ("depth", 1, 4, "nodes/depth of node 1: depth is the parent's plus one"),
    ("terminal", 0, True, "nodes/terminal of node 0: a terminal node has no children"),
    ("action", 0, 1, "nodes/action of node 0: ROOT is the action of the root alone"),
    ("action", 3, 0, "nodes/action of node 3: ROOT is the action of the root alone"),
    ("action", 3, 6, "nodes/action of node 3: is not a known action"),
    ("visits", 0, 1, "nodes/visits of node 0: a node's visits are at least its children's together"),
    ("visits", 9, -1, "nodes/visits of node 9: is negative"),
    ("value_sum", 3, np.inf, "nodes/value_sum of node 3: is not finite"),
    ("reward", 9, np.nan, "nodes/reward of node 9: a terminal node needs a finite reward"),
    ("reward", 0, 1.0, "nodes/reward of node 0: must be NaN where the node is not terminal"),
    ("token_ids", 5, -1, "tokens/id of token 5: a token id is negative"),
    ("teacher_logprobs", 8, 0.5, "tokens/teacher_logprob of token 8: a log-probability cannot be positive"),
    ("teacher_logprobs", 8, -np.inf, "tokens/teacher_logprob of token 8: is infinite"),
    ("token_offsets", 1, 0, "nodes/token_end of node 0: a root needs at least one prompt token"),
    ("token_offsets", 1, 30, "nodes/token_end of node 1: ends before the previous row"),
    ("token_offsets", 10, 3, "token_offsets must be int64"),
]


@pytest.mark.parametrize(("field", "at", "value", "message"), BROKEN_RULES)
def test_a_broken_rule_is_refused_with_its_place(field: str, at: int, value: float, message: str) -> None:
    good, bad = random_tree("good", 1), random_tree("bad", 5, nodes=10)
    getattr(bad, field)[at] = value
    trees = MemoryTreeStore(META)
    writer = trees.open_writer()
    with pytest.raises(TreeDataError, match=f"problem 'bad': {message}"):
        writer.append([good, bad])
    writer.append([good])
    assert_same_tree(trees.open_store().problem(0), good)


def test_arrays_of_the_wrong_type_or_length_are_refused() -> None:
    tree = random_tree("bad", 5, nodes=10)
    wrong = [
        (replace(tree, parent=tree.parent.astype(np.int64)), r"parent is int64 \(10,\), must be int32 \(10,\)"),
        (replace(tree, depth=tree.depth[:-1]), r"depth is int32 \(9,\), must be int32 \(10,\)"),
        (replace(tree, texts=tree.texts[1:]), "9 texts for 10 nodes"),
        (replace(tree, texts=("\ud800", *tree.texts[1:])), "cannot be written as UTF-8"),
    ]
    writer = MemoryTreeStore(META).open_writer()
    for bad, message in wrong:
        with pytest.raises(TreeDataError, match=message):
            writer.append([bad])
