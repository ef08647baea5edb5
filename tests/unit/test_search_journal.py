"""A killed build asks its teacher for nothing twice, and ends in the trees that it would have had."""

import asyncio
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from treeopo_storage import ProblemTree

from tests.unit.test_search_build import PROBLEMS, SETTINGS, TOKENIZE, WORLD, assert_same_trees, jittered, policy
from treeopo.engines.scripted import ScriptedEngine
from treeopo.errors import EngineDeadError
from treeopo.records import Completion, FinishReason, Request
from treeopo.search import journal as journal_module
from treeopo.search.build import build_trees
from treeopo.search.journal import Journal


async def build(engine: ScriptedEngine, path: Path, committed: list[ProblemTree], made_for: str = "teacher") -> None:
    """Go on with a build, whose store is `committed`, to its end."""

    def commit(batch: Sequence[ProblemTree]) -> None:
        committed.extend(batch)

    with Journal(path, made_for) as journal:
        await build_trees(
            PROBLEMS, len(committed), lambda problem: TOKENIZE.encode(problem.question), engine, WORLD.grade, TOKENIZE,
            SETTINGS, seed=11, commit=commit, concurrency=5, commit_every=4, journal=journal,
        )  # fmt: skip


async def whole(tmp_path: Path) -> tuple[list[ProblemTree], int]:
    """The trees of a build that nothing stopped, and how many completions it takes."""
    engine, trees = ScriptedEngine(policy, latency=jittered), list[ProblemTree]()
    await build(engine, tmp_path / "whole.journal", trees)
    assert not (tmp_path / "whole.journal").exists()
    return trees, engine.requests


@pytest.mark.parametrize("stopped_at", [1, 30, 140])
async def test_a_stopped_build_goes_on_to_the_same_trees_and_asks_for_nothing_twice(
    tmp_path: Path, stopped_at: int
) -> None:
    expected, requests = await whole(tmp_path)
    committed: list[ProblemTree] = []
    first = ScriptedEngine(policy, latency=jittered, failures={stopped_at: EngineDeadError("gone")})
    with pytest.raises(EngineDeadError):
        await build(first, tmp_path / "t.journal", committed)
    answered = len((tmp_path / "t.journal").read_text().splitlines()) - 1
    assert answered >= stopped_at - 5
    second = ScriptedEngine(policy, latency=jittered)
    await build(second, tmp_path / "t.journal", committed)
    assert_same_trees(committed, expected)
    assert second.requests == requests - answered
    assert not (tmp_path / "t.journal").exists()


async def test_a_torn_line_costs_its_own_completion(tmp_path: Path) -> None:
    expected, requests = await whole(tmp_path)
    path, committed = tmp_path / "t.journal", list[ProblemTree]()
    with pytest.raises(EngineDeadError):
        await build(ScriptedEngine(policy, failures={60: EngineDeadError("gone")}), path, committed)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:20], b'{"problem": 3, "ke\n', b"\xff\x00\n", *lines[20:-1], lines[-1][:30]]))
    engine = ScriptedEngine(policy)
    await build(engine, path, committed)
    assert_same_trees(committed, expected)
    assert engine.requests == requests - (len(lines) - 2)  # less the header and the torn one


async def test_a_journal_of_other_settings_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "t.journal"
    with pytest.raises(EngineDeadError):
        await build(ScriptedEngine(policy, failures={60: EngineDeadError("gone")}), path, [])
    other = Journal(path, "another teacher")
    assert other.replayed == 0
    other.close(done=False)
    assert len(path.read_text().splitlines()) == 1


def completion(*logprobs: float) -> Completion:
    ids = np.arange(len(logprobs), dtype=np.int32)
    return Completion(ids, np.array(logprobs, np.float32), np.zeros_like(ids), "a\u2028é\n", FinishReason.LENGTH)


class Saying:
    def __init__(self, said: Completion) -> None:
        self._said = said

    async def generate(self, request: Request) -> Completion:
        return self._said


def test_a_completion_reads_back_as_it_was_written(tmp_path: Path) -> None:
    said, request = completion(-0.1, -1e-8, np.nan, -23.456789), Request([3, 1], 4, 7, 0.7, ("\n\n",))
    first = Journal(tmp_path / "j", "x")
    asyncio.run(first.of(5, Saying(said)).generate(request))
    first.close(done=False)
    again = Journal(tmp_path / "j", "x")
    read = asyncio.run(again.of(5, Saying(completion())).generate(request))
    for name in ("token_ids", "logprobs", "versions"):
        np.testing.assert_array_equal(getattr(read, name), getattr(said, name))
        assert getattr(read, name).dtype == getattr(said, name).dtype
    assert (read.text, read.finish_reason) == (said.text, said.finish_reason)
    again.close(done=False)


OTHERS = [
    Request([3, 1], 5, 7),
    Request([3, 1], 4, 8),
    Request([3], 4, 7),
    Request([3, 1], 4, 7, 0.5),
    Request([3, 1], 4, 7, stop=("x",)),
]


@pytest.mark.parametrize("other", OTHERS)
def test_another_request_is_not_answered_from_it(tmp_path: Path, other: Request) -> None:
    first = Journal(tmp_path / "j", "x")
    asyncio.run(first.of(0, Saying(completion(-1.0))).generate(Request([3, 1], 4, 7)))
    first.close(done=False)
    again = Journal(tmp_path / "j", "x")
    assert len(asyncio.run(again.of(0, Saying(completion())).generate(other)).token_ids) == 0
    again.close(done=True)


def test_what_is_committed_is_dropped_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "_WORTH_DROPPING", 1)
    journal = Journal(tmp_path / "j", "x")
    for problem in range(10):
        journal.add(problem, f"key {problem}", completion(-1.0))
    journal.committed(8)
    journal.add(10, "key 10", completion(-1.0))
    journal.add(11, "key 11", completion(-1.0))
    journal.close(done=False)
    rows = [json.loads(line) for line in (tmp_path / "j").read_text().splitlines()[1:]]
    assert [row["problem"] for row in rows] == [8, 9, 10, 11]


def test_a_full_disk_ends_the_journal_and_not_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path / "j", "x")
    journal.close(done=False)

    class Full:
        def write(self, line: str) -> None:
            raise OSError(28, "No space left on device")

        def close(self) -> None: ...

    monkeypatch.setattr(journal, "_file", Full())
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            journal.add(number, str(number), completion(-1.0))
    assert caplog.text.count("No space left on device") == 1


def test_a_disk_that_is_full_when_committed_lines_are_dropped_does_not_end_the_build_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(journal_module, "_WORTH_DROPPING", 1)
    journal = Journal(tmp_path / "j", "x")
    journal.add(0, "key", completion(-1.0))
    journal.committed(1)

    def full(path: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    for number in range(1, 4):
        journal.add(number, str(number), completion(-1.0))
    assert caplog.text.count("No space left on device") == 1
    assert json.loads((tmp_path / "j").read_text().splitlines()[1])["key"] == "key"


def test_a_place_that_cannot_be_written_costs_the_journal_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "j").mkdir()
    journal = Journal(tmp_path / "j", "x")
    journal.add(0, "key", completion(-1.0))
    journal.close(done=True)
    assert "a killed build asks again" in caplog.text
    assert (tmp_path / "j").is_dir()
