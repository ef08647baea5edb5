"""An evaluation on disk: completions.jsonl as they arrive, scores.json at the end."""

import json
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

from treeopo.errors import RunError
from treeopo.evaluation.accuracy import Graded
from treeopo.evaluation.comparison import Evaluation


class Answers:
    """Writes into `directory`, or nowhere if that is None.

    Raises:
        RunError: the directory cannot be written.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._file = None
        if directory is not None:
            try:
                directory.mkdir(parents=True, exist_ok=True)
                self._file = (directory / "completions.jsonl").open("w", encoding="utf-8")
            except OSError as error:
                raise RunError(f"{directory}: cannot be written ({error.strerror}); choose another --output") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file:
            self._file.close()

    def add(self, model: str, graded: Graded) -> None:
        if self._file:
            self._file.write(json.dumps({"model": model, **asdict(graded)}, ensure_ascii=False) + "\n")

    def finish(self, evaluation: Evaluation) -> None:
        if self._directory:
            text = json.dumps(asdict(evaluation), indent=2, ensure_ascii=False)
            (self._directory / "scores.json").write_text(text + "\n", encoding="utf-8")
