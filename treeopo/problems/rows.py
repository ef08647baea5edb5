"""Rows of problem files and of the Hugging Face hub, each with the words that name it in a complaint."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from treeopo.errors import ProblemError

Row = tuple[str, Any]
"""Where it stands, and what is there: a mapping from columns to values, unless the file is wrong."""


def file_rows(path: Path) -> Iterator[Row]:
    """The rows of a Parquet file (by its suffix) or of JSON Lines, read as they are asked for.

    Raises:
        ProblemError: the file, or a line of it, cannot be read.
    """
    try:
        yield from _parquet(path) if path.suffix == ".parquet" else _json_lines(path)
    except OSError as error:
        raise ProblemError(f"{path}: cannot be read ({error.strerror or error}); give a file of problems") from error


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                where = f"{path}:{number}"
                try:
                    yield where, json.loads(line.decode("utf-8-sig"))
                except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
                    raise ProblemError(f"{where}: not a line of JSON ({error}); give JSON Lines") from error


def _parquet(path: Path) -> Iterator[Row]:
    try:
        from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]
    except ImportError:
        raise ProblemError(f"{path}: reading Parquet needs pyarrow; pip install 'treeopo[parquet]'") from None
    try:
        batches = ParquetFile(path).iter_batches(1024)
        rows = (row for batch in batches for row in batch.to_pylist())
        yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows, start=1))
    except ValueError as error:  # pyarrow's ArrowInvalid
        raise ProblemError(f"{path}: not a Parquet file ({error})") from error


def hub_rows(repository: str, config: str | None, split: str) -> Iterator[Row]:
    """The rows of one split of a data set on the Hugging Face hub, or of its copy in the local cache.

    Raises:
        ProblemError: the data set cannot be had; the message says why, and what to give instead.
    """
    try:
        import datasets
    except ImportError:
        raise ProblemError(f"{repository} comes through the package datasets; pip install 'treeopo[train]'") from None
    name = " ".join(filter(None, (repository, config, split)))
    try:
        rows: Iterator[Mapping[str, Any]] = iter(datasets.load_dataset(repository, config, split=split))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ProblemError(
            f"{name}: cannot be loaded from the Hugging Face hub ({reason}); go online once, or give the path of a file"
        ) from error
    yield from ((f"{name}, row {number}", row) for number, row in enumerate(rows, start=1))
