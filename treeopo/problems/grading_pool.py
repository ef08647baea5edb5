"""Processes that compare LaTeX with math-verify, each killed when one answer takes too long.

    verify ─▶ a seat (one a worker; the others wait) ─▶ line to the worker ─▶ its verdict, or the deadline
                 ▲                                                                    │
                 └── the worker, or a new one in the place of a killed or dead one ◀──┘

The deadline is measured here, by the event loop, which never computes: whatever a worker does, it ends. A worker has
one answer at a time, so a killed one takes no other answer with it. The queue in front of the seats is the callers
themselves, as many as completions are in flight. Workers start when first needed, as scripts of their own: nothing of
this process (torch, an engine, threads, `__main__`) is forked or imported again.
"""

import asyncio
import contextlib
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from enum import Enum
from pathlib import Path

from treeopo.errors import GraderError
from treeopo.problems.settings import GradingSettings

_SCRIPT = Path(__file__).with_name("grading_worker.py")
_START_SECONDS = 120.0  # importing sympy, on a machine that is busy with other things
_STARTS = 3  # a worker may also be killed while it starts


class Outcome(Enum):
    """What became of one try at an answer."""

    RIGHT = "right"
    WRONG = "wrong"
    TIMEOUT = "timeout"  # math-verify's own alarm went off: the worker lives
    HUNG = "hung"  # killed at the deadline
    DIED = "died"


_REPLIES = {f"{reply.value}\n".encode(): reply for reply in (Outcome.RIGHT, Outcome.WRONG, Outcome.TIMEOUT)}


class GradingPool:
    """Grades until `close`; `timeouts` and `restarts` count since the pool was made."""

    def __init__(self, settings: GradingSettings) -> None:
        self._settings = settings
        self._seats: asyncio.LifoQueue[asyncio.Task[Process] | None] = asyncio.LifoQueue()
        for _ in range(settings.workers):
            self._seats.put_nowait(None)
        self._starts: set[asyncio.Task[Process]] = set()
        self._workers: set[Process] = set()
        self.timeouts = 0
        self.restarts = 0

    async def verify(self, gold: str, answer: str) -> bool:
        """Are two pieces of LaTeX the same answer? False too for what no worker could finish; never hangs.

        Raises:
            GraderError: a worker cannot be started at all.
        """
        line = json.dumps({"gold": gold, "answer": answer}).encode() + b"\n"
        for _ in range(self._settings.attempts):
            outcome = await self._attempt(line)
            self.timeouts += outcome in (Outcome.TIMEOUT, Outcome.HUNG)
            if outcome not in (Outcome.HUNG, Outcome.DIED):
                return outcome is Outcome.RIGHT
        return False

    async def close(self) -> None:
        """End every worker; on return none is left."""
        for start in self._starts:
            start.cancel()
        await asyncio.gather(*self._starts, return_exceptions=True)
        for worker in self._workers:
            _kill(worker)
        await asyncio.gather(*(worker.wait() for worker in self._workers))

    async def _attempt(self, line: bytes) -> Outcome:
        seat = await self._seats.get() or self._start()
        outcome = Outcome.HUNG
        try:
            worker = await asyncio.shield(seat)
            while worker.returncode is not None:  # died between two answers: no answer's fault
                seat = self._restart(worker)
                worker = await asyncio.shield(seat)
            try:
                outcome = await _exchange(worker, line, self._settings.deadline_seconds)
            finally:  # also where the caller was cancelled: the late verdict must not become the next answer's
                if outcome is Outcome.HUNG:
                    _kill(worker)
                if outcome in (Outcome.HUNG, Outcome.DIED):
                    seat = self._restart(worker)
        finally:
            failed = seat.done() and (seat.cancelled() or seat.exception() is not None)
            self._seats.put_nowait(None if failed else seat)
        return outcome

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
                    if await worker.stdout.readline() == b"ready\n":
                        return worker
                    await worker.wait()
            _kill(worker)
            self._workers.discard(worker)
            status = await worker.wait()
            self.restarts += 1
        raise GraderError(
            f"a grading worker cannot start (status {status}, {_STARTS} times): is math-verify installed "
            f"(treeopo[train]), and is grading.memory_mib ({self._settings.memory_mib}) enough?"
        )

    async def _spawn(self) -> Process:
        inner_seconds = max(1, int(0.4 * self._settings.deadline_seconds))  # once to read, once to compare
        arguments = map(str, (_SCRIPT, os.getpid(), self._settings.memory_mib, inner_seconds))
        # -P: no module beside the script or in the working directory stands in for a library's.
        worker = await asyncio.create_subprocess_exec(
            sys.executable, "-P", *arguments, stdin=PIPE, stdout=PIPE, start_new_session=True
        )
        self._workers.add(worker)
        return worker


async def _exchange(worker: Process, line: bytes, deadline: float) -> Outcome:
    assert worker.stdin is not None
    assert worker.stdout is not None
    with contextlib.suppress(ConnectionError):  # died while idle: reading says so
        worker.stdin.write(line)
    reply = asyncio.ensure_future(worker.stdout.readline())
    try:
        await asyncio.wait({reply}, timeout=deadline)
        if not reply.done():
            await asyncio.sleep(0)  # where the loop itself was late, the verdict may be there already
        if not reply.done():
            return Outcome.HUNG
        return _REPLIES.get(reply.result(), Outcome.DIED)
    finally:
        reply.cancel()


def _kill(worker: Process) -> None:
    if worker.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            worker.kill()
