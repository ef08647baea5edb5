"""One writer: a lock file beside the store (PATH.lock) with its owner's pid, host and heartbeat.

On one machine the kernel's `flock` decides, and it lets go when the owner dies, so a dead writer is taken over without
asking. Other machines that mount the store may not see that lock; to them the file's owner and heartbeat (its time of
modification) speak.
"""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Final

from treeopo_storage.errors import StoreLockedError

HEARTBEAT_S: Final = 10.0
STALE_S: Final = 60.0


class WriterLock:
    """Held from construction to `release`. Raises `StoreLockedError` if another writer holds it, `OSError` if it cannot
    be written."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._path = store.with_name(store.name + ".lock")
        self._fd = self._acquire()
        self._stop = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="treeopo-store-heartbeat", daemon=True)
        self._heart.start()

    @property
    def is_held(self) -> bool:
        """False once somebody has deleted or replaced the lock file."""
        return _same_file(self._fd, self._path)

    def release(self) -> None:
        self._stop.set()
        self._heart.join()
        if self.is_held:
            self._path.unlink()
        os.close(self._fd)

    def _acquire(self) -> int:
        while True:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                self._refuse_if_owned(fd)
                # The file we locked may have been unlinked by its owner's release in between; then lock the next one.
                if _same_file(fd, self._path):
                    os.ftruncate(fd, 0)
                    os.pwrite(fd, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def _refuse_if_owned(self, fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except BlockingIOError:
            locked = False
        pid, host = _owner(fd)
        age = max(0.0, time.time() - os.fstat(fd).st_mtime)
        owner = f"{self._store} is being written by process {pid} on host {host} (heartbeat {age:.0f} s ago)"
        if not locked:
            raise StoreLockedError(f"{owner}; wait for it or stop it")
        if host not in ("", socket.gethostname()):
            remedy = "wait for it or stop it" if age < STALE_S else f"if that process is dead, delete {self._path}"
            raise StoreLockedError(f"{owner}; {remedy}")

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            # A disk that refuses the heartbeat will refuse the next append too, which says so.
            with contextlib.suppress(OSError):
                os.utime(self._fd)


def _owner(fd: int) -> tuple[str, str]:
    """Pid and host from the lock file; empty while its owner has not written them yet."""
    try:
        record = json.loads(os.pread(fd, 4096, 0))
        return str(record["pid"]), str(record["host"])
    except (ValueError, KeyError, TypeError):
        return "", ""


def _same_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False
