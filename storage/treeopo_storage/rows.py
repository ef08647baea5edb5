"""Rows of the files that people keep data in: JSON Lines, a JSON array, CSV, TSV, Parquet; compressed or not.

A row is what the file has there: an object, unless the file is wrong. Numbers of JSON are int or Decimal, so that none
is rounded on its way; what its cells say is `cells`' part.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Any

from treeopo_storage.errors import FileFormatError, MissingDependencyError
from treeopo_storage.text_files import open_bytes, read_lines, read_text, refuse_no_text

Row = tuple[str, Any]
"""The words that name it in a complaint, and what is there: a mapping from columns to values, if all is well."""

COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
TABLES = (".csv", ".tsv")
PARQUET = (".parquet", ".pq")
SUFFIXES = (".jsonl", ".ndjson", ".json", *TABLES, *PARQUET)
"""Of files with rows, in lower case, before they are compressed. Other names are read as JSON."""

_KINDS = "JSON Lines, a JSON array, CSV (.csv), TSV (.tsv) or Parquet"
_BLANK = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder(parse_float=Decimal)
_PARQUET_MAGIC = b"PAR1"


def file_rows(path: Path) -> Iterator[Row]:
    """The rows of a file, as they are asked for where its kind allows that (an array is read whole).

    CSV and TSV are told by their suffix, Parquet by its first bytes; anything else is JSON.

    Raises:
        FileFormatError: it is of no such kind, or damaged; the message names the line or row, and what mends it.
        StoreAccessError: it cannot be read.
        MissingDependencyError: it needs pyarrow.
    """
    suffix = data_suffix(path)
    with open_bytes(path) as content:
        head = content.peek(512)
        is_parquet = head.startswith(_PARQUET_MAGIC)
        whole = content.read() if is_parquet and not _begins_with_magic(path) else None  # compressed once more
    if is_parquet:
        yield from _parquet(path, path if whole is None else io.BytesIO(whole))
        return
    refuse_no_text(path, head)
    if suffix in PARQUET:
        raise FileFormatError(f"{path}: is no Parquet file, whatever its name; copy or download it again")
    yield from _table(path, suffix) if suffix in TABLES else _json(path)


def data_suffix(path: Path) -> str:
    """The suffix that tells what a file holds, in lower case: of `A.JSONL.gz`, `.jsonl`."""
    name = path.name.lower()
    return Path(next((name.removesuffix(end) for end in COMPRESSED if name.endswith(end)), name)).suffix


def parse_json(text: str, where: str) -> Any:
    """One value of JSON, its fractions exact.

    Raises:
        FileFormatError: it is none; `where` and the column are named.
    """
    try:
        value, end = _DECODER.raw_decode(text, _BLANK.match(text).end())  # type: ignore[union-attr]
        if text[end:].strip():
            raise json.JSONDecodeError("more after its end", text, end)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{where}: not a line of JSON ({_reason(error, text)}); give {_KINDS}") from None
    return value


def _reason(error: Exception, text: str) -> str:
    if text.lstrip().startswith(("{'", "[{'")):
        return "single quotes are Python's; write it by json.dumps"
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg[:1].lower()}{error.msg[1:]}, column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error).partition(";")[0]


def _json(path: Path) -> Iterator[Row]:
    numbered = enumerate(read_lines(path), 1)
    first = next(((number, line) for number, line in numbered if line.strip()), None)
    if first is None:
        return
    if first[1].lstrip().startswith("[") or _breaks_off(first[1]):
        yield from _values(path, read_text(path))
        return
    for number, line in chain([first], numbered):
        if line.strip():
            yield f"{path}:{number}", parse_json(line, f"{path}:{number}")


def _breaks_off(line: str) -> bool:
    """Whether a line is the beginning of a value that goes on on the next: pretty-printed JSON."""
    try:
        _DECODER.decode(line)
    except json.JSONDecodeError as error:
        return error.pos >= len(line.rstrip())
    except (ValueError, RecursionError):
        return False
    return False


def _values(path: Path, text: str) -> Iterator[Row]:
    """Of one array its elements; else the values one after the other, as `jq .` leaves them."""
    at, line = _BLANK.match(text).end(), 1  # type: ignore[union-attr]
    line += text.count("\n", 0, at)
    while at < len(text):
        try:
            value, end = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            place = error.lineno if isinstance(error, json.JSONDecodeError) else line
            raise FileFormatError(f"{path}:{place}: not JSON ({_reason(error, text[at:])}); give {_KINDS}") from None
        if isinstance(value, list):
            yield from ((f"{path}, row {number}", row) for number, row in enumerate(value, 1))
        else:
            yield f"{path}:{line}", value
        after = _BLANK.match(text, end).end()  # type: ignore[union-attr]
        line += text.count("\n", at, after)
        at = after


def _table(path: Path, suffix: str) -> Iterator[Row]:
    lines = (f"{line}\n" for line in read_lines(path))
    header = next((line for line in lines if line.strip()), "")
    delimiter = "\t" if suffix == ".tsv" else max(",;\t", key=header.count)
    table = csv.reader(chain([header], lines), delimiter=delimiter, strict=True)
    names: list[str] = []
    try:
        names = next(table, [])
        if again := [name for name, count in Counter(names).items() if count > 1]:
            raise FileFormatError(f"{path}: its header names {again[0]!r} more than once; rename one")
        for number, cells in enumerate((cells for cells in table if any(cells)), 1):
            where = f"{path}, row {number}"
            if len(cells) != len(names):
                raise FileFormatError(
                    f"{where}: has {len(cells)} cells where the header names {len(names)} columns; put cells that hold "
                    f"{delimiter!r} in double quotes"
                )
            yield where, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise FileFormatError(f"{path}: line {table.line_num} is no line of {suffix[1:].upper()} ({error})") from None


def _begins_with_magic(path: Path) -> bool:
    with path.open("rb") as raw:
        return raw.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC


def _parquet(path: Path, source: Path | io.BytesIO) -> Iterator[Row]:
    try:
        import pyarrow as pa  # type: ignore[import-untyped]
        from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]
    except ImportError:
        raise MissingDependencyError(f"{path}: reading Parquet needs pyarrow; pip install 'treeopo[parquet]'") from None
    number = 0
    try:
        with ParquetFile(source) as file:
            for batch in file.iter_batches(1024):
                for row in _short_floats(batch):
                    number += 1
                    yield f"{path}, row {number}", row
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise FileFormatError(f"{path}: no whole Parquet file, after row {number} ({reason}); copy it again") from error


def _short_floats(batch: Any) -> list[dict[str, Any]]:
    """The rows of a batch; its float32 and float16 as numpy's, which are written as they are meant: 0.1."""
    import numpy as np

    rows: list[dict[str, Any]] = batch.to_pylist()
    for field in batch.schema:
        kind = {"float": np.float32, "halffloat": np.float16}.get(str(field.type))
        if kind:
            for row in rows:
                if row[field.name] is not None:
                    row[field.name] = kind(row[field.name])
    return rows
