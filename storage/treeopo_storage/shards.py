"""The files that one name stands for: a file, a directory of shards, a pattern."""

import glob
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from treeopo_storage.errors import FileFormatError
from treeopo_storage.rows import SUFFIXES, Row, data_suffix, file_rows

_NUMBERS = re.compile(r"(\d+)")


def rows_of(paths: Iterable[Path]) -> Iterator[Row]:
    """The rows of `file_rows`, file after file."""
    for path in paths:
        yield from file_rows(path)


def find_files(name: str, pattern: str = "*") -> list[Path]:
    """The files that `name` stands for; none where it stands for nothing.

    A file of that very name, whatever brackets it holds; else the files of a directory that match `pattern` and hold
    rows by their suffix; else those that match `name` as a pattern (`*`, `[0-9]`, `**`). Numbers in names are sorted
    as numbers.

    Raises:
        FileFormatError: the directory is not one of shards: its files are of several names, or of none that is read.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        return _shards(path, pattern)
    if not any(mark in name for mark in "*["):
        return []
    found = (Path(one) for one in glob.glob(str(path), recursive=True))
    return sorted((one for one in found if one.is_file()), key=_in_order)


def is_shard(path: Path) -> bool:
    """Whether a file's name says that it holds rows."""
    return path.is_file() and data_suffix(path) in SUFFIXES and not path.name.startswith(".")


def _shards(path: Path, pattern: str) -> list[Path]:
    for mark, what in {
        "zarr.json": "is a tree store; give the file or directory of rows",
        "dataset_info.json": "is what save_to_disk of datasets leaves; write it as Parquet instead (to_parquet)",
        "adapter_config.json": "is an adapter, not a directory of rows",
    }.items():
        if (path / mark).is_file():
            raise FileFormatError(f"{path}: {what}")
    found = sorted((one for one in path.glob(pattern) if is_shard(one)), key=_in_order)
    if not found:
        inside = f"; or a pattern for those in its directories, '{path}/**/*.jsonl'" if any(path.glob("*/")) else ""
        raise FileFormatError(f"{path}: no file in it ends in {', '.join(SUFFIXES)}; give a file{inside}")
    names = sorted({_without_number(one) for one in found})
    if pattern == "*" and len(names) > 1:
        raise FileFormatError(
            f"{path}: its files are not shards of one set ({', '.join(names[:4])}); say which: '{path}/{names[0]}'"
        )
    return found


def _without_number(path: Path) -> str:
    """The name of a shard as a pattern of all of them: `train-00000-of-00002.parquet` is `train-*.parquet`."""
    stem, dot, suffixes = path.name.partition(".")
    return re.sub(r"\d+([-_]of[-_]\d+)?$", "*", stem) + dot + suffixes


def _in_order(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in _NUMBERS.split(str(path))]
