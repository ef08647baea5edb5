"""JSON Lines: a step a line, for any tool that reads text."""

import json
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from treeopo_storage.text_files import finished_rows

from treeopo.trackers.names import current_name

_log = logging.getLogger(__name__)


class JsonLines:
    """`Tracker` that appends one object a step to `path`, which is made with the first of them.

    On opening, lines after step `resume_at` are dropped, so a resumed run has each step once; a last line torn by a
    crash goes with them. Other damage is left out with a warning, and the file as it was stays beside it (.damaged). A
    value that is not finite, which JSON cannot say, is left out.
    """

    def __init__(self, path: Path, resume_at: int) -> None:
        self._path = path
        self._file: TextIOWrapper | None = None
        if path.exists():
            rows = list(_rows(path))
            if any(row is None for _, row in rows):
                shutil.copyfile(path, path.with_suffix(".damaged"))
            kept = [line for line, row in rows if row is not None and row["step"] <= resume_at]
            partial = path.with_suffix(".partial")
            partial.write_bytes(b"".join(line + b"\n" for line in kept))
            os.replace(partial, path)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._file is None:
            self._file = self._path.open("a", encoding="utf-8")
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The steps of a run so far, oldest first, under today's names whatever version wrote them.

    An unfinished last line is left out, and a damaged one with a warning; a file that is not there has no step.
    """
    rows = [row for _, row in _rows(path) if row is not None]
    return [{current_name(name): value for name, value in row.items()} for row in rows]


def _rows(path: Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """The finished lines that hold anything, and what they say: None where that cannot be read, which is warned of."""
    for number, line, row in finished_rows(path):
        is_step = isinstance(row, dict) and isinstance(row.get("step"), int)
        if not is_step:
            _log.warning("%s:%d is damaged and left out", path, number)
        yield line, row if is_step else None
