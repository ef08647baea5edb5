"""The tree store in Zarr v3: the only module that imports zarr.

Layout: one group whose arrays are `schema.COLUMNS`, all one-dimensional, and whose attributes hold the settings and the
commit record (rows of each axis, rolling CRC-32 of each column, and a CRC-32 of the attributes themselves). Numbers are
stored raw, so that a row range of a chunk is one `pread`; UTF-8 is zstd-compressed; every chunk ends in a CRC-32C,
checked the first time a reader touches the chunk. Chunks are replaced whole, never written in place.
"""

import contextlib
import json
import os
import shutil
import sys
import uuid
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, cast

import google_crc32c
import numpy as np
import zarr
from numcodecs.zstd import Zstd  # type: ignore[import-untyped]
from zarr.abc.store import RangeByteRequest, Store
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore

from treeopo_storage.columnar import ColumnarStore, ColumnarWriter
from treeopo_storage.errors import (
    DamagedStoreError,
    MissingDependencyError,
    NotAStoreError,
    StoreAccessError,
    StoreError,
    StoreExistsError,
    StoreLockedError,
)
from treeopo_storage.files import DurableReplacements, read_range, remove_partials, sync_path
from treeopo_storage.lock import WriterLock
from treeopo_storage.places import parse_place
from treeopo_storage.root import RESTORE, Commit, parse_root, root_attributes
from treeopo_storage.schema import AXES, COLUMNS, Array, Columns, Counts, StoreMeta
from treeopo_storage.strangers import described

# Rows of a chunk along each axis; measured in benchmarks/store.py, reasons in docs/store.md.
CHUNK_ROWS: Final[Mapping[str, int]] = {"problem": 8192, "node": 32768, "token": 262144}
TEXT_CHUNK_BYTES: Final = 262144
CRC_BYTES: Final = 4
CRC_RESIDUE: Final = 0x48674BC7  # the CRC-32C of any bytes followed by their own CRC-32C


def create_store(path: Path | str, meta: StoreMeta) -> None:
    """Create an empty store at a path or URL where nothing is yet.

    Raises `StoreExistsError`, `TreeDataError` (settings that are not JSON) or `StoreAccessError`.
    """
    attributes = root_attributes(meta, Commit(dict.fromkeys(AXES, 0), dict.fromkeys(COLUMNS, 0)), path)
    _refuse_existing(path)
    with _accessing(path, "create"):
        if (target := _local(path)) is None:
            _create_group(_connect(path, read_only=False), attributes)
            return
        # Built aside and renamed, so that a store either is not there or is whole.
        aside = target.with_name(f"{target.name}.{uuid.uuid4().hex}.partial")
        try:
            _create_group(_DurableLocalStore(aside), attributes)
            aside.rename(target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        sync_path(target.parent)


def open_store(path: Path | str) -> ColumnarStore:
    """A reader of the newest commit. Reads the commit record and nothing else.

    Raises `NotAStoreError`, `SchemaVersionError`, `DamagedStoreError` or `StoreAccessError`.
    """
    return ColumnarStore(ZarrColumns(path))


def open_writer(path: Path | str) -> ColumnarWriter:
    """The store's one writer, after cutting off whatever a dead writer left behind its last commit.

    Raises as `open_store`, and `StoreLockedError` while another writer lives. A store at a URL has no lock: there, one
    writer at a time is the caller's duty (a writer that finds foreign commits stops).
    """
    lock = None
    if (directory := _local(path)) is not None:
        ZarrColumns(path)  # what is not a store gets no lock file
        with _accessing(path, "write to"):
            lock = WriterLock(directory)
    try:
        return ColumnarWriter(_ZarrSink(path, lock))
    except BaseException:
        if lock is not None:
            lock.release()
        raise


def create_writer(path: Path | str, meta: StoreMeta) -> ColumnarWriter:
    """The writer of a new store; where it is refused (by a file system without locks, say), no store is left behind.

    Raises as `create_store` and `open_writer`.
    """
    _refuse_existing(path)
    lock = None
    if (directory := _local(path)) is not None:
        with _accessing(path, "create"):
            directory.parent.mkdir(parents=True, exist_ok=True)
            lock = WriterLock(directory)
    try:
        create_store(path, meta)
        return ColumnarWriter(_ZarrSink(path, lock))
    except BaseException:
        if lock is not None:
            lock.release()
        raise


@contextlib.contextmanager
def new_store(path: Path | str, meta: StoreMeta) -> Iterator[ColumnarWriter]:
    """The writer of a store that is to be filled within the block: if that fails, the store is not there.

    Raises as `create_writer`.
    """
    writer = create_writer(path, meta)
    try:
        yield writer
        writer.close()
    except BaseException:
        with contextlib.suppress(StoreError):
            writer.close()
        if (directory := _local(path)) is not None:
            shutil.rmtree(directory, ignore_errors=True)
        else:
            sync(_connect(path, read_only=False).delete_dir(""))
        raise


def _refuse_existing(path: Path | str) -> None:
    if store_exists(path):
        raise StoreExistsError(f"{path} already exists; choose another path, or open it to continue it")


def store_exists(path: Path | str) -> bool:
    """Whether something is at a path or URL, so that a new store cannot be.

    Raises `NotAStoreError`, `MissingDependencyError` or `StoreAccessError`: there can be no store.
    """
    with _accessing(path, "read"):
        if (target := _local(path)) is not None:
            return target.exists() and (not target.is_dir() or any(target.iterdir()))
        return _get(_connect(path, read_only=True), "zarr.json") is not None


def _local(path: Path | str) -> Path | None:
    """The directory that a place names, None where it is not on this machine."""
    place = parse_place(path)
    return place.absolute() if isinstance(place, Path) else None


class ZarrColumns:
    """A `ColumnSource` over one Zarr group. Keeps one decoded chunk of each text column (256 KiB each)."""

    def __init__(self, path: Path | str, *, read_only: bool = True) -> None:
        self.where = str(path)
        self._root = _local(path)
        self._store = _connect(path, read_only=read_only)
        self.meta, self.commit_record = self._read_root()
        self._chunk_rows: dict[str, int] = {}
        self._checked: set[tuple[str, int]] = set()
        self._decoded: dict[str, tuple[Commit, int, Array]] = {}

    def committed(self) -> Counts:
        before, (_, newest) = self.commit_record, self._read_root()
        if newest != before:
            self.commit_record = newest
            # The chunks that were last then have since been replaced by fuller ones.
            for name, rows in self._chunk_rows.items():
                self._checked.discard((name, before.counts[COLUMNS[name].axis] // rows))
        return self.commit_record.counts

    def read(self, column: str, start: int, stop: int) -> Array:
        if start >= stop:
            return np.empty(0, COLUMNS[column].dtype)
        rows = self._layout(column)
        first, last = start // rows, (stop - 1) // rows
        if first == last:
            return self._read_chunk(column, first, start - first * rows, stop - first * rows)
        result = np.empty(stop - start, COLUMNS[column].dtype)
        for chunk in range(first, last + 1):
            lo, hi = max(start, chunk * rows), min(stop, (chunk + 1) * rows)
            result[lo - start : hi - start] = self._read_chunk(column, chunk, lo - chunk * rows, hi - chunk * rows)
        result.flags.writeable = False  # as the views of a single chunk are
        return result

    def _read_chunk(self, column: str, chunk: int, lo: int, hi: int) -> Array:
        """Rows [lo, hi) of one chunk."""
        dtype = np.dtype(COLUMNS[column].dtype)
        if COLUMNS[column].is_text:
            # Marked with the commit it was read under: a later one may have put more into the same chunk.
            commit, remembered = self.commit_record, self._decoded.get(column)
            if remembered is None or remembered[0] is not commit or remembered[1] != chunk:
                remembered = commit, chunk, np.frombuffer(self._decompress(column, chunk), dtype)
                self._decoded[column] = remembered
            return remembered[2][lo:hi]
        if (column, chunk) not in self._checked:
            return np.frombuffer(self._whole_chunk(column, chunk), dtype)[lo:hi]
        wanted = (hi - lo) * dtype.itemsize
        data = self._get(f"{column}/c/{chunk}", lo * dtype.itemsize, wanted)
        if data is None or len(data) != wanted:
            raise self._damaged(column, chunk, "is missing" if data is None else "is cut short")
        return np.frombuffer(data, dtype)

    def _whole_chunk(self, column: str, chunk: int) -> memoryview:
        """A chunk's bytes without its checksum, after checking it."""
        commit = self.commit_record
        data = self._get(f"{column}/c/{chunk}")
        if data is None:
            raise self._damaged(column, chunk, "is missing")
        body = memoryview(data)[:-CRC_BYTES]
        expected = None if COLUMNS[column].is_text else self._layout(column) * np.dtype(COLUMNS[column].dtype).itemsize
        if expected is not None and len(body) != expected:
            raise self._damaged(column, chunk, f"has {len(data)} bytes instead of {expected + CRC_BYTES}")
        if google_crc32c.value(data) != CRC_RESIDUE:
            raise self._damaged(column, chunk, "fails its checksum")
        if commit is self.commit_record:  # another thread may have refreshed meanwhile
            self._checked.add((column, chunk))
        return body

    def _decompress(self, column: str, chunk: int) -> bytes:
        try:
            text = bytes(Zstd().decode(self._whole_chunk(column, chunk)))
        except RuntimeError as error:
            raise self._damaged(column, chunk, "cannot be decompressed") from error
        if len(text) != self._layout(column):
            raise self._damaged(column, chunk, f"holds {len(text)} bytes instead of {self._layout(column)}")
        return text

    def length(self, column: str) -> int:
        """Rows the array has now, committed or not."""
        return int(self._array(column).shape[0])

    def _layout(self, column: str) -> int:
        """Rows in a chunk of a column, after checking once that the array is laid out as `read` relies on."""
        if column not in self._chunk_rows:
            array, dtype = self._array(column), np.dtype(COLUMNS[column].dtype)
            raw = BytesCodec(endian="little" if dtype.itemsize > 1 else None)
            expected = [codec.to_dict() for codec in (raw, *_compressors(column))]
            codecs = [codec.to_dict() for codec in cast(Any, array.metadata).codecs]
            if array.dtype != dtype or array.ndim != 1 or codecs != expected:
                raise DamagedStoreError(f"{self.where}: array {column} was rewritten in another layout; {RESTORE}")
            self._chunk_rows[column] = array.chunks[0]
        return self._chunk_rows[column]

    def _array(self, column: str) -> "zarr.Array[Any]":
        with _accessing(self.where, "read"):
            try:
                return zarr.open_array(self._store, path=column, mode="r")
            except (ValueError, KeyError, TypeError) as error:
                raise DamagedStoreError(f"{self.where}: array {column} is missing or unreadable; {RESTORE}") from error

    def _get(self, key: str, start: int = 0, length: int | None = None) -> bytes | None:
        with _accessing(self.where, "read"):
            if self._root is not None:
                return read_range(self._root / key, start, length)
            return _get(self._store, key, start, length)

    def _read_root(self) -> tuple[StoreMeta, Commit]:
        if (data := self._get("zarr.json")) is None:
            if self._root is None:
                raise NotAStoreError(f"{self.where} is not a tree store; give the URL that a search or an import wrote")
            with _accessing(self.where, "read"):
                raise NotAStoreError(described(Path(parse_place(self.where))))
        return parse_root(data, self.where)

    def _damaged(self, column: str, chunk: int, what: str) -> DamagedStoreError:
        row = chunk * self._layout(column)
        return DamagedStoreError(f"{self.where}: {column} row {row}: its chunk {column}/c/{chunk} {what}; {RESTORE}")


class _ZarrSink(ZarrColumns):
    """A `ColumnSink`: rows first, made durable, then the commit record."""

    def __init__(self, path: Path | str, lock: WriterLock | None) -> None:
        super().__init__(path, read_only=False)
        self._lock = lock
        self._whole = True  # no commit is half done and no other writer was seen
        with _accessing(path, "write to"), self._reporting_damage():
            if self._root is not None:
                remove_partials(self._root)
            group = zarr.open_group(self._store, mode="r+")
            # Chunks of zeros are written too: a missing chunk is damage, never a run of zeros.
            self._arrays = {
                name: cast("zarr.Array[Any]", group[name]).with_config({"write_empty_chunks": True}) for name in COLUMNS
            }
            for name, array in self._arrays.items():
                count = self.commit_record.counts[COLUMNS[name].axis]
                if array.shape[0] < count:
                    found = f"array {name} has {array.shape[0]} rows of {count} committed"
                    raise DamagedStoreError(f"{path}: {found}; {RESTORE}")
                # The next append rewrites this column's last chunk: look at it before trusting it.
                self.read(name, max(count - 1, 0), count)
            self._trim()

    def commit(self, columns: Columns, counts: Counts) -> None:
        last = self.commit_record
        if reason := self._overtaken():
            self._whole = False
            raise StoreLockedError(f"{self.where}: {reason}; nothing was written")
        crc32 = {
            name: zlib.crc32(np.ascontiguousarray(rows).view(np.uint8).data, last.crc32[name])
            for name, rows in columns.items()
        }
        self._whole = False
        with _accessing(self.where, "write to"), self._reporting_damage():
            for name, rows in columns.items():
                array, start = self._arrays[name], last.counts[COLUMNS[name].axis]
                stop = start + len(rows)
                if stop > array.shape[0]:
                    # By whole chunks, so that a commit rarely rewrites metadata; `close` trims.
                    array.resize((-(-stop // array.chunks[0]) * array.chunks[0],))
                array[start:stop] = rows
            self._flush()
            _put_root(self._store, root_attributes(self.meta, Commit(counts, crc32), self.where))
            self._flush()
        self.committed()
        self._whole = True

    def close(self) -> None:
        try:
            # What failed is cut when the next writer opens; what is another's is not ours to cut.
            if self._whole and not self._overtaken():
                with _accessing(self.where, "write to"):
                    self._trim()
        finally:
            if self._lock is not None:
                self._lock.release()

    def _overtaken(self) -> str:
        """How another writer shows that the store is no longer this one's, if it does."""
        if self._lock is not None and not self._lock.is_held:
            return "the lock was taken from this writer"
        last = self.commit_record
        self.committed()
        return "" if self.commit_record == last else "another writer has committed meanwhile"

    def _trim(self) -> None:
        """Cut every array to its committed rows."""
        for name, array in self._arrays.items():
            count = self.commit_record.counts[COLUMNS[name].axis]
            if array.shape[0] > count:
                array.resize((count,))
        self._flush()

    def _flush(self) -> None:
        if isinstance(self._store, _DurableLocalStore):
            self._store.flush()

    @contextlib.contextmanager
    def _reporting_damage(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, KeyError) as error:
            raise DamagedStoreError(f"{self.where}: {' '.join(str(error).split())}; {RESTORE}") from error


class _DurableLocalStore(LocalStore):
    """Zarr's directory store whose writes wait for `flush`, which makes them durable together."""

    def __init__(self, root: Path | str, *, read_only: bool = False) -> None:
        super().__init__(root, read_only=read_only)
        self._replacements = DurableReplacements()

    async def set(self, key: str, value: Buffer) -> None:
        self._check_writable()
        self._replacements.add(self.root / key, cast(memoryview, value.as_buffer_like()))

    def flush(self) -> None:
        self._replacements.flush()


def _connect(path: Path | str, *, read_only: bool) -> Store:
    if (directory := _local(path)) is not None:
        return _DurableLocalStore(directory, read_only=read_only)
    try:
        return FsspecStore.from_url(str(path), read_only=read_only)
    except ImportError as error:
        raise MissingDependencyError(f"{path}: {error}") from error
    except ValueError as error:
        raise NotAStoreError(f"{path}: {error}") from error


def _get(store: Store, key: str, start: int = 0, length: int | None = None) -> bytes | None:
    byte_range = None if length is None else RangeByteRequest(start, start + length)
    value = sync(store.get(key, default_buffer_prototype(), byte_range))
    return None if value is None else value.to_bytes()


def _compressors(column: str) -> list[ZstdCodec | Crc32cCodec]:
    return [ZstdCodec(level=3), Crc32cCodec()] if COLUMNS[column].is_text else [Crc32cCodec()]


def _create_group(store: Store, attributes: dict[str, Any]) -> None:
    group = zarr.create_group(store)
    for name, column in COLUMNS.items():
        group.create_array(
            name,
            shape=(0,),
            chunks=(TEXT_CHUNK_BYTES if column.is_text else CHUNK_ROWS[column.axis],),
            dtype=column.dtype,
            compressors=_compressors(name),
            fill_value=0,
        )
    _put_root(store, attributes)
    if isinstance(store, _DurableLocalStore):
        store.flush()


def _put_root(store: Store, attributes: dict[str, Any]) -> None:
    root = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    value = default_buffer_prototype().buffer.from_bytes(json.dumps(root, indent=2).encode())
    sync(store.set("zarr.json", value))


@contextlib.contextmanager
def _accessing(where: Path | str, doing: str) -> Iterator[None]:
    """Turn what the operating system refuses into one line."""
    try:
        yield
    except PermissionError as error:
        raise StoreAccessError(f"{where}: permission denied; cannot {doing} the store") from error
    except OSError as error:
        raise StoreAccessError(
            f"{where}: cannot {doing} the store: {os.strerror(error.errno) if error.errno else error}"
        ) from error
    except NotImplementedError as error:
        raise StoreAccessError(f"{where}: cannot {doing} the store: there is no writing at such a URL") from error
    except _remote_errors() as error:
        raise StoreAccessError(f"{where}: cannot {doing} the store: {error}") from error


def _remote_errors() -> tuple[type[Exception], ...]:
    """What s3fs and fsspec's HTTP let through (no credentials, no server, no right to write); asked for only once
    something was raised."""
    libraries = (("botocore.exceptions", "BotoCoreError"), ("aiohttp", "ClientError"))
    return tuple(getattr(sys.modules[module], name) for module, name in libraries if module in sys.modules)
