"""What can go wrong with a tree store, drawn before it was coded.

    StoreError
    ├── NotAStoreError (ValueError)        nothing there, or something that is not a tree store
    ├── StoreExistsError (ValueError)      a new store would overwrite something
    ├── SchemaVersionError (ValueError)    written by a version of treeopo this one does not know
    ├── TreeDataError (ValueError)         a tree, a record or settings that the store refuses
    ├── FileFormatError (ValueError)       a file that is not of the kind its reader reads
    ├── EmptyStoreError (ValueError)       no committed problem where one is needed
    ├── TokenizerMismatchError (ValueError) token ids of another tokenizer
    ├── StoreLockedError                   another writer owns the store
    ├── StoreAccessError                   the disk or the network refused (permission, full, read-only)
    ├── WriterClosedError                  append after close, or after a failed append
    ├── MissingDependencyError             an optional package is needed and absent
    └── DamagedStoreError                  bytes are missing or not those that were committed

Every message is one line: what is wrong, where, and what to do.
"""


class StoreError(Exception):
    """Base of every error that the tree store raises on purpose."""


class NotAStoreError(StoreError, ValueError):
    """There is no tree store at this path."""


class StoreExistsError(StoreError, ValueError):
    """A store cannot be created where something already is."""


class SchemaVersionError(StoreError, ValueError):
    """The store's schema version is unknown to this version of treeopo."""


class TreeDataError(StoreError, ValueError):
    """A tree, a record or a setting cannot be stored; nothing was written."""


class FileFormatError(StoreError, ValueError):
    """A file is not what its reader can read; the message says what it is and what to do."""


class EmptyStoreError(StoreError, ValueError):
    """The store holds no committed problem."""


class TokenizerMismatchError(StoreError, ValueError):
    """The store's token ids belong to another tokenizer."""


class StoreLockedError(StoreError):
    """Another writer owns the store, or took it over."""


class StoreAccessError(StoreError):
    """The operating system or the object store refused a read or a write."""


class WriterClosedError(StoreError):
    """The writer was closed, or an earlier append failed; open a new one to continue."""


class MissingDependencyError(StoreError):
    """An optional package that this operation needs is not installed."""


class DamagedStoreError(StoreError):
    """Committed data is missing or differs from what was written."""
