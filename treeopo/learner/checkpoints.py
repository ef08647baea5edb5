"""Checkpoints that are whole or absent: written beside, flushed to disk, then renamed into place."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

_NAME = re.compile(r"step-(\d{6,})")


class Checkpoints:
    """The checkpoints of one run, `step-000010` and so on under `directory`; the newest `kept` remain."""

    def __init__(self, directory: Path, kept: int) -> None:
        self._directory = directory
        self._kept = kept

    def save(self, version: int, write: Callable[[Path], None]) -> Path:
        """Have `write` fill a directory and make it the checkpoint of `version`; older ones beyond `kept` go.

        An interrupted or failed write leaves the earlier checkpoints as they were.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        for left in self._directory.glob(".partial-*"):  # by a killed process; a run has one writer
            shutil.rmtree(left)
        partial = self._directory / f".partial-{os.getpid()}"
        partial.mkdir()
        try:
            write(partial)
            for path in partial.rglob("*"):
                _flush(path)
            final = self._directory / f"step-{version:06d}"
            shutil.rmtree(final, ignore_errors=True)
            os.replace(partial, final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        _flush(self._directory)
        for _, path in self._all()[: -self._kept]:
            shutil.rmtree(path)
        return final

    def latest(self) -> Path | None:
        """The newest whole checkpoint, or None."""
        found = self._all()
        return found[-1][1] if found else None

    def _all(self) -> list[tuple[int, Path]]:
        if not self._directory.is_dir():
            return []
        named = ((_NAME.fullmatch(path.name), path) for path in self._directory.iterdir())
        return sorted((int(match[1]), path) for match, path in named if match)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
