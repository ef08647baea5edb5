"""The tree store kept in memory: the same behaviour without a disk, for tests and for small runs."""

import numpy as np

from treeopo_storage.columnar import ColumnarStore, ColumnarWriter
from treeopo_storage.errors import StoreLockedError
from treeopo_storage.schema import AXES, COLUMNS, Array, Columns, Counts, StoreMeta


class MemoryTreeStore:
    """A store that lives as long as this object: one open writer at a time, any number of readers."""

    def __init__(self, meta: StoreMeta) -> None:
        self.meta = meta
        self._arrays: dict[str, Array] = {name: np.empty(0, column.dtype) for name, column in COLUMNS.items()}
        self._counts: Counts = dict.fromkeys(AXES, 0)
        self._written = False

    def open_writer(self) -> ColumnarWriter:
        """The writer; `StoreLockedError` while another is open."""
        if self._written:
            raise StoreLockedError("this in-memory store already has a writer; close it first")
        self._written = True
        return ColumnarWriter(self)

    def open_store(self) -> ColumnarStore:
        """A reader of what is committed now."""
        return ColumnarStore(self)

    def committed(self) -> Counts:
        return self._counts

    def read(self, column: str, start: int, stop: int) -> Array:
        rows = self._arrays[column][start:stop]
        rows.flags.writeable = False  # as what is read from a disk
        return rows

    def commit(self, columns: Columns, counts: Counts) -> None:
        # Arrays are replaced, never written to: a reader's views stay what they were.
        self._arrays = {name: np.concatenate([self._arrays[name], rows]) for name, rows in columns.items()}
        self._counts = counts

    def close(self) -> None:
        self._written = False
