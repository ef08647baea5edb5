"""What lies where a tree store was expected says what it is: packed, copied in part, not to be written, half made."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from treeopo_storage import (
    StoreExistsError,
    TreeDataError,
    TreeWriter,
    create_store,
    new_store,
    open_writer,
    store_exists,
)
from treeopo_storage.conformance import random_tree
from treeopo_storage.errors import StoreAccessError, StoreError
from treeopo_storage.verify import verify_store

from tests.hard_knocks.commands import META, invoke


def zipped(path: Path) -> None:
    shutil.make_archive("t.zarr", "zip", base_dir="t.zarr")
    shutil.move("t.zarr.zip", path)


def tarred(path: Path) -> None:
    shutil.move(shutil.make_archive("t", "tar", base_dir="t.zarr"), path)


def tarred_and_packed(path: Path) -> None:
    shutil.move(shutil.make_archive("t", "gztar", base_dir="t.zarr"), path)


def without_its_root(path: Path) -> None:
    shutil.copytree("t.zarr", path)
    (path / "zarr.json").unlink()


def without_its_tokens(path: Path) -> None:
    shutil.copytree("t.zarr", path)
    shutil.rmtree(path / "tokens")


def cut_short(path: Path) -> None:
    shutil.copytree("t.zarr", path)
    os.truncate(path / "tokens" / "id" / "c" / "0", 100)


def one_level_down(path: Path) -> None:
    shutil.copytree("t.zarr", path / "t.zarr")


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (zipped, r"s\.zarr is not a tree store but a zip archive; unpack it, or read it as zip://NAME\.zarr::s\.zarr"),
        (tarred, r"s\.zarr is not a tree store but a tar archive; unpack it"),
        (tarred_and_packed, r"s\.zarr is not a tree store but a gzip archive; unpack it"),
        (without_its_root, r"s\.zarr is part of a tree store: its zarr\.json is missing; copy the store again"),
        (without_its_tokens, r"s\.zarr: array tokens/id is missing or unreadable; restore it from a copy"),
        (cut_short, r"s\.zarr: tokens/id row 0: its chunk tokens/id/c/0 has 100 bytes instead of .*; restore it"),
        (one_level_down, r"s\.zarr is not a tree store but holds s\.zarr/t\.zarr; give that"),
        (Path.touch, r"s\.zarr is not a tree store but a file, and a store is a directory"),
        (Path.mkdir, r"s\.zarr is not a tree store but an empty directory"),
        (lambda path: None, r"there is no tree store at s\.zarr"),
    ],
)
def test_what_is_no_whole_store_says_what_it_is(at: Path, make: Callable[[Path], object], expected: str) -> None:
    with new_store("t.zarr", META) as writer:
        writer.append([random_tree("p", 1)])
    make(Path("s.zarr"))
    with pytest.raises(StoreError, match=expected) as error:
        verify_store("s.zarr")
    assert "\n" not in str(error.value)


def test_a_zipped_store_is_read_where_it_is(at: Path) -> None:
    with new_store("t.zarr", META) as writer:
        writer.append([random_tree("p", 1)])
    zipped(at / "packed.zip")
    assert verify_store("zip://t.zarr::packed.zip").problem_count == 1


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_store_that_cannot_be_written_is_read_and_refused_in_a_line(
    at: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with new_store("t.zarr", META) as writer:
        writer.append([random_tree("p", 1)])
    opened = os.open

    def read_only(path: str, flags: int, *arguments: Any, **more: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(number, os.strerror(number))
        return opened(path, flags, *arguments, **more)

    monkeypatch.setattr(os, "open", read_only)
    assert verify_store("t.zarr").problem_count == 1
    for arguments in (["store", "merge", "t.zarr", "-o", "new.zarr"],):
        assert "new.zarr: " in (line := invoke(*arguments))
        assert "cannot create the store" in line
    with pytest.raises(StoreAccessError, match=r"t\.zarr: .*cannot write to the store"):
        open_writer("t.zarr")


def fill(writer: TreeWriter) -> None:
    """The second of these is refused."""
    writer.append([random_tree("p", 1)])
    writer.append([random_tree("p", 1)])


def test_a_store_that_could_not_be_filled_is_not_there(at: Path) -> None:
    for place in ("t.zarr", f"memory://{uuid4().hex}/t.zarr"):
        with pytest.raises(TreeDataError), new_store(place, META) as writer:
            fill(writer)
        assert not store_exists(place)
    assert not list(at.iterdir())
    create_store("t.zarr", META)
    with pytest.raises(StoreExistsError):
        new_store("t.zarr", META).__enter__()
    assert os.listdir(at) == ["t.zarr"]
