"""An evaluation on disk: its settings, every completion as it arrives, and the scores once all are there.

DIR/evaluation.json      what was asked, so that a stopped evaluation goes on only with the same question
DIR/completions.jsonl    a line per completion: problem set, model, problem, sample, text, answer, reward
DIR/scores.json          written last
DIR/.lock                who evaluates, while somebody does
"""

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python
from treeopo_storage.errors import FileFormatError
from treeopo_storage.text_files import json_line, whole_lines

from treeopo.errors import RunError
from treeopo.evaluation.accuracy import Graded
from treeopo.evaluation.comparison import Evaluation
from treeopo.owners import owning

_GRADED = TypeAdapter(Graded)
_EVALUATIONS = TypeAdapter(tuple[Evaluation, ...])

Done = dict[tuple[str, int], Graded]
"""Completions by (problem id, sample)."""


class Answers:
    """Writes into `directory`, or nowhere if that is None; what an evaluation with equal `settings` left is kept, or
    with `earlier`, the same settings as earlier versions wrote them.

    Raises:
        RunError: the directory cannot be written, holds an evaluation with other settings, or is another process's.
    """

    def __init__(
        self, directory: Path | None, settings: Mapping[str, Any], *, earlier: Mapping[str, Any] | None = None
    ) -> None:
        self._directory = directory
        self._file: TextIO | None = None
        self._done: dict[tuple[str, str], Done] = {}
        if directory is None:
            return
        with ExitStack() as stack:
            self._owner = stack.enter_context(owning(directory))
            self._file = stack.enter_context(
                self._open(directory, to_jsonable_python(settings), to_jsonable_python(earlier))
            )
            self._stack = stack.pop_all()

    def _open(self, directory: Path, settings: Mapping[str, Any], earlier: Mapping[str, Any] | None) -> TextIO:
        """The file of completions, with the whole ones of a stopped evaluation in it."""
        try:
            self._check(directory / "evaluation.json", settings, earlier)
            path = directory / "completions.jsonl"
            lines = self._read(path)
            partial = path.with_suffix(".partial")
            partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            os.replace(partial, path)
            return path.open("a", encoding="utf-8")
        except OSError as error:
            raise RunError(f"{directory}: cannot be written ({error.strerror}); choose another --output") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file:
            self._stack.close()

    def done(self, problems: str, model: str) -> Done:
        """What an earlier evaluation has of a model on a problem set."""
        return self._done.get((problems, model), {})

    @property
    def done_count(self) -> int:
        return sum(map(len, self._done.values()))

    def add(self, problems: str, model: str, graded: Graded) -> None:
        if self._file:
            self._owner.check()
            row = {"problems": problems, "model": model, **asdict(graded)}
            self._file.write(json_line(row))
            self._file.flush()

    def finish(self, evaluations: tuple[Evaluation, ...]) -> None:
        if self._directory:
            (self._directory / "scores.json").write_bytes(_EVALUATIONS.dump_json(evaluations, indent=2) + b"\n")

    def _check(self, path: Path, settings: Mapping[str, Any], earlier: Mapping[str, Any] | None) -> None:
        try:
            there = _current(json.loads(path.read_bytes())) if path.exists() else settings
        except (ValueError, TypeError, AttributeError):
            raise RunError(
                f"{path}: is damaged; choose another --output, or remove it if completions.jsonl is of this evaluation"
            ) from None
        if there not in (settings, earlier):
            raise RunError(f"{path.parent}: holds an evaluation with other settings; choose another --output")
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(partial, path)

    def _read(self, path: Path) -> list[str]:
        """The whole lines of a stopped evaluation; one torn by a crash is dropped.

        Raises:
            RunError: a line is damaged; it is named.
        """
        try:
            lines = whole_lines(path)
        except FileFormatError as error:
            raise RunError(f"{error}; or remove that line, and its completion is made again") from None
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                graded = _GRADED.validate_python({key: row[key] for key in row.keys() - {"problems", "model"}})
                of = row["problems"], row["model"]
            except (ValueError, AttributeError, KeyError):
                raise RunError(
                    f"{path}:{number} is no completion; remove that line, and its completion is made again"
                ) from None
            self._done.setdefault(of, {})[graded.problem_id, graded.sample] = graded
        return lines


def _current(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings under today's names: version 0.1 called `grading.grader` `grading.family`."""
    grading = dict(settings.get("grading", {}))
    if "family" in grading:
        grading["grader"] = grading.pop("family")
    return {**settings, "grading": grading} if grading else settings


def read_evaluations(directory: Path) -> tuple[Evaluation, ...] | None:
    """The scores of a finished evaluation, one per problem set; None if there are none yet."""
    path = directory / "scores.json"
    return _EVALUATIONS.validate_json(path.read_bytes()) if path.exists() else None
