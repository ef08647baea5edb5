"""Rows of problem files and of the Hugging Face hub, each with the words that name it in a complaint."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from treeopo_storage.errors import StoreError
from treeopo_storage.rows import Row
from treeopo_storage.shards import rows_of

from treeopo.errors import ProblemError

__all__ = ["Row", "file_rows", "hub_rows"]


def file_rows(paths: Sequence[Path]) -> Iterator[Row]:
    """The rows of files, one after the other (`treeopo_storage.rows` says of which kinds), read as they are asked for.

    Raises:
        ProblemError: a file, or a row of it, cannot be read.
    """
    try:
        yield from rows_of(paths)
    except StoreError as error:
        raise ProblemError(str(error)) from error


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
