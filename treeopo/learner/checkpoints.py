"""Checkpoints that are whole or absent: written beside, flushed to disk, then renamed into place.

step-000010/files.json     the size of each file of it, by which one that was copied in part is known
"""

import json
import logging
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from treeopo.errors import RunError

_log = logging.getLogger(__name__)
_NAME = re.compile(r"step-(\d{6,})")
_SIZES = "files.json"
_EVERY_ONE_HAS = ("optimizer.pt", "adapter/adapter_config.json", "adapter/adapter_model.safetensors")


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
            (partial / _SIZES).write_text(json.dumps(_sizes(partial), indent=2) + "\n", encoding="utf-8")
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
        """The newest whole checkpoint, or None where none was made; a damaged one is passed over with a warning.

        Raises:
            RunError: all that there are are damaged.
        """
        found = [path for _, path in self._all()]
        for path in reversed(found):
            damage = _damage(path)
            if damage is None:
                return path
            _log.warning("%s is damaged (%s); it is passed over for the one before it", path, damage)
        if found:
            raise RunError(
                f"{self._directory}: no checkpoint is whole; copy them again, or remove it to begin the run anew"
            )
        return None

    def _all(self) -> list[tuple[int, Path]]:
        if not self._directory.is_dir():
            return []
        named = ((_NAME.fullmatch(path.name), path) for path in self._directory.iterdir())
        return sorted((int(match[1]), path) for match, path in named if match)


def _sizes(checkpoint: Path) -> dict[str, int]:
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    return {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in files}


def _damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint; None if it is whole. One of version 0.1 lists no sizes: its files are opened."""
    sizes = _sizes(checkpoint)
    try:
        expected: dict[str, int] = json.loads((checkpoint / _SIZES).read_text(encoding="utf-8"))
    except FileNotFoundError:
        if missing := [name for name in _EVERY_ONE_HAS if name not in sizes]:
            return f"{missing[0]} is missing"
        return next((f"{name} is cut short" for name in sizes if not _opens(checkpoint / name)), None)
    except ValueError:
        return f"{_SIZES} is cut short"
    for name, size in expected.items():
        if sizes.get(name) != size:
            return f"{name} has {sizes[name]} of {size} bytes" if name in sizes else f"{name} is missing"
    return None


def _opens(path: Path) -> bool:
    if path.suffix == ".pt":
        return zipfile.is_zipfile(path)
    if path.suffix == ".safetensors":
        try:
            safe_open(path, "numpy")
        except SafetensorError:
            return False
    return True


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
