"""Local files: ranges read with one system call, and writes that survive a power cut."""

import os
import uuid
from pathlib import Path


def read_range(path: Path, start: int = 0, length: int | None = None) -> bytes | None:
    """Up to `length` bytes from `start`, or None if there is no such file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return os.pread(fd, os.fstat(fd).st_size if length is None else length, start)
    finally:
        os.close(fd)


def replace_durably(path: Path, data: memoryview | bytes) -> None:
    """Make `path` hold `data`: readers and crashes see the old file or the new one, whole.

    The new name itself is durable after `sync_directory(path.parent)`.
    """
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def sync_directory(path: Path) -> None:
    """Make renames and new names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_partials(root: Path) -> None:
    """Delete what writers that were killed inside `replace_durably` left behind."""
    for partial in root.rglob("*.partial"):
        partial.unlink(missing_ok=True)
