"""One owner at a time: a lock file with its owner's pid, host and heartbeat. A store's is beside it (PATH.lock).

On one machine the kernel's `flock` decides, and it lets go when the owner dies, so a dead owner is taken over without
asking. Other machines that mount the file system may not see that lock; to them the file's owner and heartbeat (its
time of modification) speak.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Final

from treeopo_storage.errors import StoreAccessError, StoreLockedError

HEARTBEAT_S: Final = 10.0
STALE_S: Final = 60.0
ORPHANS_S: Final = 5.0
"""How long a dead owner's children, which share its lock, are waited for; and an owner that has not signed yet."""

_NO_LOCKS: Final = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)
_WITH_LOCKS: Final = (
    "use a local disk and copy the store afterwards, or mount the file system with locks (NFS: local_lock=flock or a "
    "lock server, Lustre: flock)"
)


class OwnerLock:
    """The lock file `path`, held from construction to `release`. `what` says what it stands for, as in "a.zarr is being
    written". By the heartbeat, if that is asked for, an owner on another host that is silent for `STALE_S` is taken
    over, and on a file system without locks one on this host too; an owner looks at `is_held` then.

    Raises:
        StoreLockedError: another process holds it. StoreAccessError: the file system has no locks. OSError: the file
        cannot be written.
    """

    def __init__(self, path: Path, what: str, *, by_heartbeat: bool = False) -> None:
        self._path = path
        self._what = what
        self._by_heartbeat = by_heartbeat
        self._fd = self._acquire()
        self._stop = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="treeopo-heartbeat", daemon=True)
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
        deadline = time.monotonic() + ORPHANS_S
        while True:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                if not self._is_taken(fd, deadline) and _same_file(fd, self._path):
                    os.ftruncate(fd, 0)
                    os.pwrite(fd, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
                    return fd
                # Somebody is about to let go, or has: the file we locked may have been unlinked by its owner's release
                # in between. Then lock the next one.
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)
            time.sleep(0.01)

    def _is_taken(self, fd: int, deadline: float) -> bool:
        """Whether to try again; False once the lock is ours."""
        locked = self._flock(fd)
        pid, host = _owner(fd)
        age = max(0.0, time.time() - os.fstat(fd).st_mtime)
        owner = f"{self._what} by process {pid} on host {host} (heartbeat {age:.0f} s ago)"
        is_here, is_silent = host == socket.gethostname(), age >= STALE_S
        if locked is False and host and not (is_here and not _is_alive(pid)):
            raise StoreLockedError(f"{owner}; wait for it or stop it")
        if locked is False:
            return self._is_let_go(pid, deadline)
        if host and not is_here and not (self._by_heartbeat and is_silent):
            remedy = f"if that process is dead, delete {self._path}" if is_silent else "wait for it or stop it"
            raise StoreLockedError(f"{owner}; {remedy}")
        if locked is None and is_here and _is_alive(pid) and not is_silent:  # a reused pid's heart does not beat here
            raise StoreLockedError(f"{owner}; wait for it or stop it")
        return False

    def _is_let_go(self, pid: str, deadline: float) -> bool:
        """True while there is hope: the owner has not signed yet, or is dead and its children follow it."""
        if time.monotonic() < deadline:
            return True
        if pid:
            raise StoreLockedError(f"{self._what} by a process that process {pid} left behind on this host; end it")
        self._path.unlink(missing_ok=True)  # an owner signs within a moment: ours, made in vain
        raise StoreLockedError(
            f"{self._what} by a process that does not say who it is; wait for it or stop it, and if there is none the "
            f"locks of this file system do not work: {_WITH_LOCKS}"
        )

    def _flock(self, fd: int) -> bool | None:
        """Whether the kernel gave us the lock; None where it has none to give."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            if self._by_heartbeat:
                return None
            if os.fstat(fd).st_size == 0:
                self._path.unlink(missing_ok=True)
            raise StoreAccessError(
                f"{self._path.with_suffix('')}: its file system has no locks to keep a second writer out "
                f"({os.strerror(error.errno)}); {_WITH_LOCKS}"
            ) from error
        return True

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            # A disk that refuses the heartbeat will refuse the next write too, which says so.
            with contextlib.suppress(OSError):
                os.utime(self._fd)


class WriterLock(OwnerLock):
    """A store's one writer."""

    def __init__(self, store: Path) -> None:
        super().__init__(store.with_name(store.name + ".lock"), f"{store} is being written")


def _owner(fd: int) -> tuple[str, str]:
    """Pid and host from the lock file; empty while its owner has not written them yet."""
    try:
        record = json.loads(os.pread(fd, 4096, 0))
        return str(record["pid"]), str(record["host"])
    except (ValueError, KeyError, TypeError):
        return "", ""


def _is_alive(pid: str) -> bool:
    """Whether a process of this host has that id."""
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _same_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False
