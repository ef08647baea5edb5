"""Restarts an engine that died or hung, publishes the newest policy to it again, and repeats unfinished requests.

    request ─▶ the engine that lives ──answer──▶
                  │ dies, or gives no token for hang_seconds
                  ▼
               close it, wait (longer each time), start another, publish the newest policy again ─▶ the same request

A request keeps its seed, so under the same policy its answer is the same whenever it is asked.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from treeopo.engines.settings import RestartSettings
from treeopo.errors import EngineDeadError, EngineError, ModelError
from treeopo.ports import Engine
from treeopo.records import Completion, FloatArray, IntArray, Request, WeightFormat

T = TypeVar("T")

POLLS = 4
"""A hang is this many looks in a row at a busy engine without progress. Looks are counted instead of seconds: when this
process itself stood still, the engine's answers must be read before it is judged."""


_CLOSED = "the engine was closed"


class Watched(Engine, Protocol):
    """An engine that shows whether it still works: `tokens` sampled so far, for whatever request."""

    @property
    def tokens(self) -> int: ...


@dataclass(eq=False, slots=True)
class _Life:
    """One engine from its start to its death; `died` is set to why."""

    engine: Watched
    died: asyncio.Future[EngineDeadError] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    busy: int = 0


class RestartingEngine:
    """`Engine` over those that `start` makes, one after the other. Make one with `open`, end it with `close`."""

    def __init__(self, start: Callable[[], Awaitable[Watched]], first: Watched, settings: RestartSettings) -> None:
        self.restarts = 0
        self._start = start
        self._settings = settings
        self._life = _Life(first)
        self._policy: tuple[int, Path] | None = None
        self._failures = 0  # in a row, without an answer in between
        self._closed = False
        self._restart: asyncio.Task[None] | None = None
        self._watch = asyncio.create_task(self._watch_for_hangs())

    @classmethod
    async def open(cls, start: Callable[[], Awaitable[Watched]], settings: RestartSettings) -> "RestartingEngine":
        """Start the first engine; what keeps it from starting is raised as it is."""
        return cls(start, await start(), settings)

    @property
    def weight_format(self) -> WeightFormat:
        return self._life.engine.weight_format

    @property
    def versions_in_use(self) -> frozenset[int]:
        newest = frozenset({self._policy[0]}) if self._policy else frozenset[int]()
        return newest | self._life.engine.versions_in_use

    @property
    def tokens(self) -> int:
        """Sampled so far by the engine that lives, those of unfinished requests included."""
        return self._life.engine.tokens

    async def generate(self, request: Request) -> Completion:
        """See `Generate`; raises `EngineDeadError` once the engine failed too often in a row."""
        completion = await self._while_alive(lambda engine: engine.generate(request))
        self._failures = 0
        return completion

    async def score(self, token_ids: Sequence[IntArray], prefix_lengths: Sequence[int]) -> list[FloatArray]:
        """See `ScoreTokens`; raises `EngineDeadError` once the engine failed too often in a row."""
        scores = await self._while_alive(lambda engine: engine.score(token_ids, prefix_lengths))
        self._failures = 0
        return scores

    async def publish(self, version: int, path: Path) -> None:
        """See `PublishPolicy`; waits for a restart that is under way."""
        await self._while_alive(lambda engine: engine.publish(version, path))
        self._policy = version, path

    def peak_memory_mib(self) -> float:
        return self._life.engine.peak_memory_mib()

    async def close(self) -> None:
        """Calls that wait for an answer or a restart raise `EngineDeadError`."""
        self._closed = True
        if not self._life.died.done():
            self._life.died.set_result(EngineDeadError(_CLOSED))
        for task in (self._watch, self._restart):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await self._life.engine.close()

    async def _while_alive(self, call: Callable[[Watched], Coroutine[Any, Any, T]]) -> T:
        """What `call` returns, from the first engine that lives to answer it."""
        while True:
            if self._restart is not None:
                await asyncio.wait({self._restart})
            if self._closed:
                raise EngineDeadError(_CLOSED)
            if self._restart is not None:
                self._restart.result()
            life = self._life
            try:
                return await _or_death(life, call(life.engine))
            except EngineDeadError as error:
                if self._closed:
                    raise
                self._bury(life, error)

    def _bury(self, life: _Life, error: EngineDeadError) -> None:
        """Have a dead engine replaced, once, however many requests noticed."""
        if not life.died.done():
            life.died.set_result(error)
            self._restart = asyncio.create_task(self._replace(life, error))
            self._restart.add_done_callback(lambda task: task.cancelled() or task.exception())  # not a warning

    async def _replace(self, life: _Life, error: EngineError | ModelError) -> None:
        """Leave a living engine in `_life`, or raise for everyone who waits and whoever asks later."""
        await life.engine.close()
        while True:
            self._failures += 1
            if self._failures > self._settings.max_restarts:
                raise EngineDeadError(f"the engine failed {self._failures} times in a row; the last time: {error}")
            await asyncio.sleep(self._settings.backoff_seconds * 2 ** (self._failures - 1))
            try:
                life = _Life(await self._start())
            except (EngineError, ModelError) as failed:
                error = failed
                continue
            try:
                if self._policy is not None:
                    await asyncio.wait_for(life.engine.publish(*self._policy), self._settings.hang_seconds)
                break
            except (EngineError, TimeoutError) as failed:
                error = failed if isinstance(failed, EngineError) else EngineDeadError("it hung taking the policy")
                await life.engine.close()
        self.restarts += 1
        self._life, self._restart = life, None

    async def _watch_for_hangs(self) -> None:
        """Bury an engine that works on something and has sampled nothing in `POLLS` looks, `hang_seconds` together."""
        seen: tuple[_Life, int] | None = None
        looks = 0
        while True:
            await asyncio.sleep(self._settings.hang_seconds / POLLS)
            life = self._life
            now = life, life.engine.tokens
            looks = looks + 1 if now == seen and life.busy else 0
            seen = now
            if looks >= POLLS:
                self._bury(
                    life,
                    EngineDeadError(
                        f"the engine gave no token for {self._settings.hang_seconds:g} s with {life.busy} calls waiting"
                    ),
                )


async def _or_death(life: _Life, call: Coroutine[Any, Any, T]) -> T:
    """The result of `call`; raises `EngineDeadError` if its engine is found dead first, for that may never answer."""
    task = asyncio.create_task(call)
    either: set[asyncio.Future[Any]] = {task, life.died}
    life.busy += 1
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise life.died.result()
    finally:
        life.busy -= 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
