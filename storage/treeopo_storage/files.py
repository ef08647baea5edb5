"""Local files: ranges read with one system call, and writes that survive a power cut."""

import os
import uuid
from concurrent.futures import ThreadPoolExecutor
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


class DurableReplacements:
    """Files to be replaced together: written beside their names by `add`, made durable and renamed by `flush`.

    Readers and crashes see each old file or its replacement, whole; after `flush` the replacements survive a power cut.
    The waits for the disk overlap, which is what makes a commit of forty small files affordable.
    """

    def __init__(self) -> None:
        self._pending: dict[Path, Path] = {}
        self._directories: set[Path] = set()  # those with new names in them

    def add(self, path: Path, data: memoryview | bytes) -> None:
        new = path.parent
        while not new.is_dir():
            new = new.parent
            self._directories.add(new)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._directories.add(path.parent)
        partial = self._pending.setdefault(path, path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial"))
        partial.write_bytes(data)

    def flush(self) -> None:
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(sync_path, self._pending.values()))
            for path, partial in self._pending.items():
                partial.replace(path)
            list(pool.map(sync_path, self._directories))
        self._pending.clear()
        self._directories.clear()


def sync_path(path: Path) -> None:
    """fsync a file, or a directory so that the names in it are durable."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_partials(root: Path) -> None:
    """Delete what writers that were killed before a rename left behind."""
    for partial in root.rglob("*.partial"):
        partial.unlink(missing_ok=True)
