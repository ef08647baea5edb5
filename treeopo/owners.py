"""One process at a time writes into a directory: a training run's, an evaluation's."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from treeopo_storage.errors import StoreError
from treeopo_storage.lock import OwnerLock

from treeopo.errors import RunError

LOCK = ".lock"
"""In the directory that is owned: pid and host of the owner, gone when it ends."""


class Owner:
    """This process's hold on a directory."""

    def __init__(self, directory: Path, lock: OwnerLock) -> None:
        self._directory = directory
        self._lock = lock

    def check(self) -> None:
        """Find out, before something is written, whether the directory is still this process's.

        Raises:
            RunError: another took it over, because this one was silent for a minute or its lock file was deleted.
        """
        if not self._lock.is_held:
            raise RunError(f"{self._directory}: another process has taken it over; this one writes nothing more there")


@contextmanager
def owning(directory: Path) -> Iterator[Owner]:
    """Hold `directory`, which is made if it is not there and goes again if nothing is put into it.

    Where the kernel cannot see the other process (other hosts, file systems without locks), its heartbeat decides.

    Raises:
        RunError: another process holds it, or it cannot be written.
    """
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = OwnerLock(directory / LOCK, f"{directory} is in use", by_heartbeat=True)
    except StoreError as error:
        raise RunError(str(error)) from None
    except OSError as error:
        raise RunError(f"{directory}: cannot be written ({error.strerror}); choose another --output") from None
    try:
        yield Owner(directory, lock)
    finally:
        lock.release()
        with suppress(OSError):  # not empty
            for path in made:
                path.rmdir()
