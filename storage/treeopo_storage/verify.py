"""Is every committed byte what was written, and does every tree obey the rules?"""

import zlib
from pathlib import Path

from treeopo_storage.columnar import ColumnarStore
from treeopo_storage.errors import DamagedStoreError, EmptyStoreError
from treeopo_storage.invariants import find_violation
from treeopo_storage.packing import read_block, strings_of
from treeopo_storage.schema import COLUMNS
from treeopo_storage.streaming import problem_blocks
from treeopo_storage.zarr_store import ZarrColumns

_ROWS_AT_ONCE = 1 << 20


def verify_store(path: Path | str) -> ColumnarStore:
    """Read the whole store once for its checksums and once for its rules, in bounded memory (tens of MiB).

    Returns the store it verified. Raises `DamagedStoreError` naming the first bad array and row, `EmptyStoreError` if
    nothing is committed, and whatever `open_store` raises.
    """
    source = ZarrColumns(path)
    store = ColumnarStore(source)
    if not store.problem_count:
        raise EmptyStoreError(f"{path} holds no committed problem")
    for column in COLUMNS:
        _verify_checksum(source, column)
    _verify_ids(source, store)
    for start, stop in problem_blocks(store.structure().first_node):
        _verify_block(source, start, stop)
    return store


def _verify_checksum(source: ZarrColumns, column: str) -> None:
    count = source.commit_record.counts[COLUMNS[column].axis]
    if (rows := source.length(column)) < count:
        raise DamagedStoreError(f"{source.where}: {column} row {rows}: missing, {count} rows are committed")
    crc32 = 0
    for start in range(0, count, _ROWS_AT_ONCE):
        crc32 = zlib.crc32(source.read(column, start, min(start + _ROWS_AT_ONCE, count)).data, crc32)
    if crc32 != source.commit_record.crc32[column]:
        raise DamagedStoreError(f"{source.where}: {column} rows 0 to {count - 1} are not those that were committed")


def _verify_ids(source: ZarrColumns, store: ColumnarStore) -> None:
    seen: set[str] = set()
    for row, problem_id in enumerate(strings_of(source.read, "problems/id", 0, store.problem_count)):
        if problem_id in seen:
            raise DamagedStoreError(f"{source.where}: problems/id row {row}: {problem_id!r} is stored twice")
        seen.add(problem_id)


def _verify_block(source: ZarrColumns, start: int, stop: int) -> None:
    columns = read_block(source.read, start, stop)
    if violation := find_violation(columns, source.meta.vocabulary_size):
        column, row, reason = violation
        row += _rows_before(source, COLUMNS[column].axis, start)
        raise DamagedStoreError(f"{source.where}: {column} row {row}: {reason}")


def _rows_before(source: ZarrColumns, axis: str, start: int) -> int:
    """Rows of `axis` that belong to the problems before `start`."""
    if start == 0 or axis == "problem":
        return start
    name, column = next((name, column) for name, column in COLUMNS.items() if column.ends == axis)
    end = _rows_before(source, column.axis, start)
    return int(source.read(name, end - 1, end)[0])
