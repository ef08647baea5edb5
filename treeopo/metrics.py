"""Where a run's metrics go: a JSON Lines file that any tool reads, and TensorBoard."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class JsonLinesSink:
    """`MetricSink` that appends one object a step to `path`. On opening, lines after step `resume_at` are dropped, so
    a resumed run has each step once; a line torn by a crash goes with them. A value that is not finite, which JSON
    cannot say, is left out.
    """

    def __init__(self, path: Path, resume_at: int) -> None:
        kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= resume_at]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        os.replace(partial, path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoardSink:
    """`MetricSink` that writes TensorBoard event files into `directory`; a resumed run supersedes its later steps."""

    def __init__(self, directory: Path, resume_at: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory), purge_step=resume_at + 1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The steps of a run so far, oldest first; an unfinished last line is left out."""
    return [json.loads(line) for line in _whole_lines(path)]


def _whole_lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    return [line for line in path.read_text(encoding="utf-8").split("\n")[:-1] if line]
