"""What the teacher has answered in a build that is not over, so that a killed one asks for nothing twice.

    STORE.journal    a line a completion, written as it arrives

A search is a function of its seed and its completions: gone on with, it asks the same, and what stands in the journal
is answered from there. A line that a crash tore costs its own request and no more. Lines of problems whose trees are
committed are dropped now and then, and the file with the last of them.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Self

import numpy as np
from treeopo_storage.text_files import finished_rows, json_line

from treeopo.ports import Generate
from treeopo.records import Completion, FinishReason, Request

_log = logging.getLogger(__name__)

_WORTH_DROPPING = 2**20
"""Bytes of lines that nobody will ask for, and at least half of the file, before it is written anew without them."""


class Journal:
    """The completions of one build. made_for: what they depend on beside the request (teacher and settings, as text);
    a journal made for something else is begun anew.

    What fails (a full disk) ends the recording with one warning, and the build goes on.
    """

    def __init__(self, path: Path, made_for: str) -> None:
        self._path = path
        self._header = {"made_for": blake2b(made_for.encode(), digest_size=16).hexdigest()}
        self._known: dict[str, Completion] = {}
        self._file: TextIOWrapper | None = None
        self._committed = 0
        self._bytes: dict[int, int] = {}  # of each problem's lines
        with self._guarded():
            self._write_anew(self._read())

    @property
    def replayed(self) -> int:
        """Completions of an earlier process that have not been asked for yet."""
        return len(self._known)

    def of(self, problem: int, teacher: Generate) -> "_Journalled":
        """`teacher` for the search of a problem."""
        return _Journalled(self, problem, teacher)

    def committed(self, problems: int) -> None:
        """The trees of the first `problems` problems are in the store. May be called in any thread."""
        self._committed = problems

    def close(self, *, done: bool) -> None:
        """done: every tree is committed, and the journal is of no more use."""
        if self._file is None:
            return
        with self._guarded():
            self._file.close()
            self._file = None
            if done:
                self._path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.close(done=kind is None)

    def take(self, key: str) -> Completion | None:
        return self._known.pop(key, None)

    def add(self, problem: int, key: str, completion: Completion) -> None:
        if self._file is None:
            return
        line = json_line(_row(problem, key, completion))
        with self._guarded():
            self._file.write(line)
            self._file.flush()
            self._bytes[problem] = self._bytes.get(problem, 0) + len(line)
            dead = sum(size for each, size in self._bytes.items() if each < self._committed)
            if dead >= _WORTH_DROPPING and 2 * dead >= sum(self._bytes.values()):
                self._write_anew([line for line, row in self._rows() if row["problem"] >= self._committed])

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            _log.warning("%s: cannot be written (%s); a killed build asks again for what it lost", self._path, error)
            if self._file is not None:
                with suppress(OSError):
                    self._file.close()
            self._file = None

    def _read(self) -> list[bytes]:
        """The lines of a journal that was made for the same; their completions are known from then on."""
        kept = []
        for line, row in self._rows():
            try:
                self._known[row["key"]] = _completion(row)
                self._bytes[row["problem"]] = self._bytes.get(row["problem"], 0) + len(line)
            except (ValueError, KeyError, TypeError):
                continue
            kept.append(line)
        return kept

    def _rows(self) -> Iterator[tuple[bytes, Any]]:
        """What stands below a header that is this journal's; below another's, nothing."""
        rows = finished_rows(self._path)
        if next(rows, (0, b"", None))[2] == self._header:
            yield from ((line, row) for _, line, row in rows if row is not None)

    def _write_anew(self, lines: Iterable[bytes]) -> None:
        if self._file is not None:
            self._file.close()
        partial = self._path.with_name(f"{self._path.name}.partial")
        partial.write_bytes(b"".join(line + b"\n" for line in (json_line(self._header).rstrip().encode(), *lines)))
        partial.replace(self._path)
        self._file = self._path.open("a", encoding="utf-8")
        self._bytes = {each: size for each, size in self._bytes.items() if each >= self._committed}


@dataclass(frozen=True, slots=True)
class _Journalled:
    """`Generate` for one problem."""

    journal: Journal
    problem: int
    teacher: Generate

    async def generate(self, request: Request) -> Completion:
        key = _key(request)
        known = self.journal.take(key)
        if known is not None:
            return known
        completion = await self.teacher.generate(request)
        self.journal.add(self.problem, key, completion)
        return completion


def _key(request: Request) -> str:
    """All that a completion depends on."""
    rest = repr((request.max_tokens, request.seed, request.temperature, request.stop))
    content = np.asarray(request.token_ids, np.int32).tobytes() + rest.encode()
    return blake2b(content, digest_size=16).hexdigest()


def _row(problem: int, key: str, completion: Completion) -> dict[str, Any]:
    logprobs = [None if np.isnan(each) else each for each in completion.logprobs.tolist()]
    return {
        "problem": problem,
        "key": key,
        "token_ids": completion.token_ids.tolist(),
        "logprobs": logprobs,
        "text": completion.text,
        "finish_reason": completion.finish_reason,
    }


def _completion(row: dict[str, Any]) -> Completion:
    logprobs = [np.nan if each is None else each for each in row["logprobs"]]
    return Completion(
        token_ids=np.array(row["token_ids"], np.int32),
        logprobs=np.array(logprobs, np.float32),
        versions=np.zeros(len(logprobs), np.int32),
        text=row["text"],
        finish_reason=FinishReason(row["finish_reason"]),
    )
