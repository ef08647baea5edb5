"""The tree store: Monte Carlo search trees in one Zarr group (numpy and zarr only; zarr is imported on first use).

with new_store("trees.zarr", StoreMeta(tokenizer_fingerprint="...", teacher="...")) as writer:
    writer.append([tree])
store = open_store("trees.zarr")
store.prefix_tokens(problem=0, node=3)
"""

from typing import TYPE_CHECKING

from treeopo_storage.errors import (
    DamagedStoreError,
    EmptyStoreError,
    MissingDependencyError,
    NotAStoreError,
    SchemaVersionError,
    StoreAccessError,
    StoreError,
    StoreExistsError,
    StoreLockedError,
    TokenizerMismatchError,
    TreeDataError,
    WriterClosedError,
)
from treeopo_storage.memory import MemoryTreeStore
from treeopo_storage.protocol import Structure, TreeStore, TreeWriter
from treeopo_storage.schema import IMPORTED, NO_PARENT, SCHEMA_VERSION, Action, ProblemTree, StoreMeta

if TYPE_CHECKING:
    from treeopo_storage.zarr_store import create_store, create_writer, new_store, open_store, open_writer, store_exists

__all__ = [
    "IMPORTED",
    "NO_PARENT",
    "SCHEMA_VERSION",
    "Action",
    "DamagedStoreError",
    "EmptyStoreError",
    "MemoryTreeStore",
    "MissingDependencyError",
    "NotAStoreError",
    "ProblemTree",
    "SchemaVersionError",
    "StoreAccessError",
    "StoreError",
    "StoreExistsError",
    "StoreLockedError",
    "StoreMeta",
    "Structure",
    "TokenizerMismatchError",
    "TreeDataError",
    "TreeStore",
    "TreeWriter",
    "WriterClosedError",
    "create_store",
    "create_writer",
    "new_store",
    "open_store",
    "open_writer",
    "store_exists",
]


def __getattr__(name: str) -> object:
    if name in ("create_store", "create_writer", "new_store", "open_store", "open_writer", "store_exists"):
        from treeopo_storage import zarr_store

        return getattr(zarr_store, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
