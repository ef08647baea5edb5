"""Every tree store keeps the same promises."""

from pathlib import Path
from uuid import uuid4

import pytest
from treeopo_storage import MemoryTreeStore, StoreLockedError, StoreMeta, TreeStore, TreeWriter
from treeopo_storage.conformance import TreeStoreConformance, assert_same_tree, random_tree
from treeopo_storage.zarr_store import create_store, open_store, open_writer


class TestMemory(TreeStoreConformance):
    def create(self, meta: StoreMeta) -> None:
        self.trees = MemoryTreeStore(meta)

    def open_writer(self) -> TreeWriter:
        return self.trees.open_writer()

    def open_store(self) -> TreeStore:
        return self.trees.open_store()


class ZarrConformance(TreeStoreConformance):
    path: str

    def create(self, meta: StoreMeta) -> None:
        create_store(self.path, meta)

    def open_writer(self) -> TreeWriter:
        return open_writer(self.path)

    def open_store(self) -> TreeStore:
        return open_store(self.path)


class TestZarrDirectory(ZarrConformance):
    @pytest.fixture(autouse=True)
    def directory(self, tmp_path: Path) -> None:
        self.path = str(tmp_path / "trees.zarr")


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a few rows, so that every append crosses several."""
    monkeypatch.setattr("treeopo_storage.zarr_store.CHUNK_ROWS", {"problem": 2, "node": 5, "token": 7})
    monkeypatch.setattr("treeopo_storage.zarr_store.TEXT_CHUNK_BYTES", 11)


@pytest.mark.usefixtures("small_chunks")
class TestZarrManyChunks(TestZarrDirectory):
    pass


class TestZarrUrl(ZarrConformance):
    @pytest.fixture(autouse=True)
    def url(self) -> None:
        self.path = f"memory://{uuid4().hex}/trees.zarr"

    def test_a_second_writer_is_refused(self) -> None:
        """Object stores have no locks: the writer that was overtaken stops instead."""
        self.create(self.meta)
        with self.open_writer() as first, self.open_writer() as second:
            second.append([random_tree("p", 1)])
            with pytest.raises(StoreLockedError, match="another writer has committed"):
                first.append([random_tree("q", 2)])
            second.append([random_tree("q", 2)])
        assert self.open_store().problem_ids() == ["p", "q"]
        assert_same_tree(self.open_store().problem(1), random_tree("q", 2))

    def test_an_idle_writer_does_not_cut_what_another_wrote(self) -> None:
        self.create(self.meta)
        with self.open_writer(), self.open_writer() as second:
            second.append([random_tree("p", 1)])
        assert_same_tree(self.open_store().problem(0), random_tree("p", 1))
