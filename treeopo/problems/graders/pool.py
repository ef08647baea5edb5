"""Processes in which a grader runs, each killed when one answer takes too long.

    ask ─▶ a seat (one a worker; the others wait) ─▶ line to the worker ─▶ its reply, or the deadline
                 ▲                                                                 │
                 └── the worker, or a new one in the place of a killed or dead ◀──┘

The deadline is measured here, by the event loop, which never computes: whatever a worker does, it ends. A worker has
one answer at a time, so a killed one takes no other answer with it. The queue in front of the seats is the callers
themselves, as many as completions are in flight. Workers start when first needed, as scripts of their own: nothing of
this process (torch, an engine, threads, `__main__`) is forked or imported again.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from treeopo.errors import GraderError
from treeopo.problems.settings import GRADERS, GradingSettings
from treeopo.records import Problem

_SCRIPT = Path(__file__).with_name("worker.py")
_START_SECONDS = 120.0  # importing sympy, on a machine that is busy with other things
_STARTS = 3  # a worker may also be killed while it starts


class Outcome(Enum):
    """What became of one try at an answer."""

    DONE = "done"
    FAILED = "failed"  # the grader raised, or returned what is no reward: the worker lives
    TIMEOUT = "timeout"  # the grader gave up by itself: the worker lives
    HUNG = "hung"  # killed at the deadline
    DIED = "died"


@dataclass(frozen=True, slots=True)
class Reply:
    """A worker's reply: `value` (a reward, or an answer) where it is done, `error` where the grader failed."""

    outcome: Outcome
    value: Any = None
    error: str = ""


class GradingPool:
    """Asks one grader until `close`; `timeouts` and `restarts` count since the pool was made."""

    def __init__(self, grader: str, settings: GradingSettings) -> None:
        self._grader = grader
        self._settings = settings
        self._seats: asyncio.LifoQueue[asyncio.Task[Process] | None] = asyncio.LifoQueue()
        for _ in range(settings.workers):
            self._seats.put_nowait(None)
        self._starts: set[asyncio.Task[Process]] = set()
        self._workers: set[Process] = set()
        self.timeouts = 0
        self.restarts = 0

    async def grade(self, problem: Problem, text: str) -> Reply:
        """The reward of a finished solution; never hangs.

        Raises:
            GraderError: a worker cannot be started at all.
        """
        row = [problem.id, problem.question, problem.answer, problem.solution]
        return await self._ask({"ask": "grade", "problem": row, "text": text})

    async def answer(self, text: str) -> Reply:
        """The canonical answer in `text`; as `grade`."""
        return await self._ask({"ask": "answer", "text": text})

    async def reads(self, gold: str) -> Reply:
        """1 where the grader can read a gold answer, else 0; as `grade`."""
        return await self._ask({"ask": "reads", "gold": gold})

    async def close(self) -> None:
        """End every worker; on return none is left."""
        for start in self._starts:
            start.cancel()
        await asyncio.gather(*self._starts, return_exceptions=True)
        for worker in self._workers:
            _kill(worker)
        await asyncio.gather(*(worker.wait() for worker in self._workers))

    async def _ask(self, request: dict[str, Any]) -> Reply:
        line = json.dumps(request).encode() + b"\n"
        for _ in range(self._settings.attempts):
            reply = await self._attempt(line)
            self.timeouts += reply.outcome in (Outcome.TIMEOUT, Outcome.HUNG)
            if reply.outcome not in (Outcome.HUNG, Outcome.DIED):
                break
        return reply

    async def _attempt(self, line: bytes) -> Reply:
        seat = await self._seats.get() or self._start()
        reply = Reply(Outcome.HUNG)
        try:
            worker = await asyncio.shield(seat)
            while worker.returncode is not None:  # died between two answers: no answer's fault
                seat = self._restart(worker)
                worker = await asyncio.shield(seat)
            try:
                reply = await _exchange(worker, line, self._settings.deadline_seconds)
            finally:  # also where the caller was cancelled: the late reply must not become the next answer's
                if reply.outcome is Outcome.HUNG:
                    _kill(worker)
                if reply.outcome in (Outcome.HUNG, Outcome.DIED):
                    seat = self._restart(worker)
        finally:
            failed = seat.done() and (seat.cancelled() or seat.exception() is not None)
            self._seats.put_nowait(None if failed else seat)
        return reply

    def _restart(self, worker: Process) -> asyncio.Task[Process]:
        self.restarts += 1
        return self._start(replacing=worker)

    def _start(self, replacing: Process | None = None) -> asyncio.Task[Process]:
        task = asyncio.create_task(self._start_worker(replacing))
        self._starts.add(task)
        task.add_done_callback(self._started)
        return task

    def _started(self, task: asyncio.Task[Process]) -> None:
        self._starts.discard(task)
        if not task.cancelled():
            task.exception()  # whoever next needs this seat raises it; nobody may

    async def _start_worker(self, replacing: Process | None) -> Process:
        if replacing is not None:
            with contextlib.suppress(TimeoutError):  # it was killed, or closed its stdout and so is ending
                async with asyncio.timeout(1.0):
                    await replacing.wait()
            _kill(replacing)
            await replacing.wait()
            self._workers.discard(replacing)
        for _ in range(_STARTS):
            worker = await self._spawn()
            assert worker.stdout is not None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_START_SECONDS):
                    said = _decoded(await worker.stdout.readline())
                    if "ready" in said:
                        return worker
                    await worker.wait()
            _kill(worker)
            self._workers.discard(worker)
            status = await worker.wait()
            if "error" in said:
                raise GraderError(f"grader {self._grader} cannot be used in a worker process ({said['error']})")
            self.restarts += 1
        needs = "is math-verify installed (treeopo[train])" if self._grader in GRADERS else "what does importing it do"
        raise GraderError(
            f"a grading worker of {self._grader} cannot start (status {status}, {_STARTS} times): {needs}, and is "
            f"grading.memory_mib ({self._settings.memory_mib}) enough?"
        )

    async def _spawn(self) -> Process:
        arguments = {
            "grader": self._grader,
            "parent": os.getpid(),
            "memory_mib": self._settings.memory_mib,
            "deadline_seconds": self._settings.deadline_seconds,
            "path": [] if self._grader in GRADERS else [str(Path(entry).resolve()) for entry in sys.path],
        }
        # -P: no module beside the script or in the working directory stands in for a library's.
        worker = await asyncio.create_subprocess_exec(
            sys.executable, "-P", _SCRIPT, json.dumps(arguments), stdin=PIPE, stdout=PIPE, start_new_session=True
        )
        self._workers.add(worker)
        return worker


async def _exchange(worker: Process, line: bytes, deadline: float) -> Reply:
    assert worker.stdin is not None
    assert worker.stdout is not None
    with contextlib.suppress(ConnectionError):  # died while idle: reading says so
        worker.stdin.write(line)
    reply = asyncio.ensure_future(worker.stdout.readline())
    try:
        await asyncio.wait({reply}, timeout=deadline)
        if not reply.done():
            await asyncio.sleep(0)  # where the loop itself was late, the reply may be there already
        return _read(reply.result()) if reply.done() else Reply(Outcome.HUNG)
    finally:
        reply.cancel()


def _read(line: bytes) -> Reply:
    match _decoded(line):
        case {"value": float() | str() as value}:
            return Reply(Outcome.DONE, value)
        case {"error": str() as error}:
            return Reply(Outcome.FAILED, error=error)
        case {"timeout": True}:
            return Reply(Outcome.TIMEOUT)
        case _:
            return Reply(Outcome.DIED)


def _decoded(line: bytes) -> dict[str, Any]:
    """The reply in a line; empty where it is none."""
    try:
        said = json.loads(line)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _kill(worker: Process) -> None:
    """With it goes what the grader started: a worker leads a process group of its own."""
    if worker.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
