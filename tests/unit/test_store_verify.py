"""`verify_store` passes what is whole and names the first thing that is not."""

import random
import shutil
from functools import partial
from pathlib import Path

import pytest
import zarr
from treeopo_storage import DamagedStoreError, EmptyStoreError, StoreMeta, create_store, open_writer
from treeopo_storage import zarr_store as zs
from treeopo_storage.conformance import random_tree
from treeopo_storage.schema import COLUMNS
from treeopo_storage.streaming import problem_blocks
from treeopo_storage.verify import verify_store

META = StoreMeta("0123456789abcdef", "teacher", vocabulary_size=1000)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(zs, "CHUNK_ROWS", {"problem": 8, "node": 64, "token": 256})
    monkeypatch.setattr(zs, "TEXT_CHUNK_BYTES", 2048)
    create_store(tmp_path / "trees.zarr", META)
    with open_writer(tmp_path / "trees.zarr") as writer:
        writer.append([random_tree(f"p{seed}", seed, nodes=8) for seed in range(12)])
    return tmp_path / "trees.zarr"


def test_a_whole_store_passes(path: Path) -> None:
    assert verify_store(path).problem_count == 12


def test_an_empty_store_has_nothing_to_verify(tmp_path: Path) -> None:
    create_store(tmp_path / "trees.zarr", META)
    with pytest.raises(EmptyStoreError, match="holds no committed problem"):
        verify_store(tmp_path / "trees.zarr")


def test_a_flipped_bit_of_any_chunk_is_detected(path: Path) -> None:
    chunks = sorted(path.rglob("c/*"))
    assert len(chunks) > len(COLUMNS)
    for chunk in chunks:
        data = bytearray(chunk.read_bytes())
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        whole = chunk.read_bytes()
        chunk.write_bytes(data)
        with pytest.raises(DamagedStoreError, match=f"{chunk.relative_to(path)} "):
            verify_store(path)
        chunk.write_bytes(whole)


def test_a_missing_chunk_is_named_with_its_first_row(path: Path) -> None:
    (path / "nodes/visits/c/1").unlink()
    with pytest.raises(DamagedStoreError, match="nodes/visits row 64: its chunk nodes/visits/c/1 is missing"):
        verify_store(path)


def test_a_whole_chunk_from_elsewhere_is_detected(path: Path) -> None:
    shutil.copy(path / "tokens/id/c/1", path / "tokens/id/c/0")
    with pytest.raises(DamagedStoreError, match=r"tokens/id rows 0 to .* are not those that were committed"):
        verify_store(path)


def test_an_array_that_lost_rows_is_detected(path: Path) -> None:
    zarr.open_array(path / "nodes/depth").resize((90,))
    with pytest.raises(DamagedStoreError, match="nodes/depth row 90: missing, 96 rows are committed"):
        verify_store(path)


@pytest.mark.parametrize(
    ("field", "at", "value", "message"),
    [
        ("depth", 3, 9, "nodes/depth row 99: depth is the parent's plus one"),
        ("token_ids", 0, 5000, r"tokens/id row \d+: a token id is beyond the vocabulary of 1000"),
    ],
)
def test_a_rule_broken_by_a_faulty_writer_is_named_by_its_row(
    path: Path, monkeypatch: pytest.MonkeyPatch, field: str, at: int, value: int, message: str
) -> None:
    bad = random_tree("bad", 40, nodes=8)
    getattr(bad, field)[at] = value
    monkeypatch.setattr("treeopo_storage.columnar.find_violation", lambda *_: None)
    monkeypatch.setattr("treeopo_storage.verify.problem_blocks", partial(problem_blocks, nodes_per_block=16))
    with open_writer(path) as writer:
        writer.append([bad])
    with pytest.raises(DamagedStoreError, match=message):
        verify_store(path)
