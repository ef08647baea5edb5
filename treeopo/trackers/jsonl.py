"""JSON Lines: a step a line, for any tool that reads text."""

import json
import math
import os
from collections.abc import Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from treeopo.trackers.names import current_name


class JsonLines:
    """`Tracker` that appends one object a step to `path`, which is made with the first of them.

    On opening, lines after step `resume_at` are dropped, so a resumed run has each step once; a line torn by a crash
    goes with them. A value that is not finite, which JSON cannot say, is left out.
    """

    def __init__(self, path: Path, resume_at: int) -> None:
        self._path = path
        self._file: TextIOWrapper | None = None
        if path.exists():
            kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= resume_at]
            partial = path.with_suffix(".partial")
            partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
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

    An unfinished last line is left out; a file that is not there has no step.
    """
    return [{current_name(name): value for name, value in json.loads(line).items()} for line in _whole_lines(path)]


def _whole_lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    return [line for line in path.read_text(encoding="utf-8").split("\n")[:-1] if line]
