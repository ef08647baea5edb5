"""Load balancing over several engines: requests go where the fewest are in flight, and survive an engine's death.

    request ─▶ least loaded member ─▶ answer                    publish ─▶ every living member, at once
                    │ EngineDeadError
                    ├─▶ the same request, to another member
                    └─▶ start it again, with backoff ─▶ publish the current policy ─▶ member again

A request's answer is a function of the request and the policy, so one that is issued again gives what it would have
given. A member takes requests only while it serves the newest policy.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TypeVar

from treeopo.errors import EngineDeadError, EngineError, InputError, require
from treeopo.ports import Engine
from treeopo.records import Completion, FloatArray, IntArray, Request, WeightFormat
from treeopo.tasks import gather_or_cancel

T = TypeVar("T")
StartMember = Callable[[], Awaitable[Engine]]

_LONGEST_BACKOFF = 60.0  # seconds between two attempts to start a dead member again
_log = logging.getLogger(__name__)


class _Member:
    """One engine's place; `engine` is None while it is dead."""

    def __init__(self, start: StartMember, engine: Engine) -> None:
        self.start = start
        self.engine: Engine | None = engine
        self.weight_format = engine.weight_format
        self.in_flight = 0


class BalancedEngine:
    """Make one with `start`, end it with `close`. `sleep` is for tests."""

    def __init__(self, members: Sequence[_Member], sleep: Callable[[float], Awaitable[None]]) -> None:
        self.restarts = 0
        self._members = members
        self._sleep = sleep
        self._policy: tuple[int, Path] | None = None
        self._publishing = asyncio.Lock()
        self._revivals: set[asyncio.Task[None]] = set()
        self._last_death = "none was started"
        self._closed = False

    @classmethod
    async def start(
        cls, starts: Sequence[StartMember], sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> "BalancedEngine":
        """Start every member at once; the first that cannot be started ends the others and is raised.

        Raises:
            ConfigError: policies would have to travel to some as adapters, to others merged.
        """
        started: list[Engine] = []

        async def begin(start: StartMember) -> _Member:
            engine = await start()
            started.append(engine)
            return _Member(start, engine)

        try:
            members = await gather_or_cancel(map(begin, starts))
            require(
                len({member.weight_format for member in members}) == 1,
                "some servers take adapters and others merged weights; start them alike, or say --publish",
            )
            return cls(members, sleep)
        except BaseException:
            for engine in started:
                await engine.close()
            raise

    @property
    def weight_format(self) -> WeightFormat:
        return self._members[0].weight_format

    @property
    def versions_in_use(self) -> frozenset[int]:
        """Of all members; the newest is among them even if none is alive, for those that come back."""
        newest = {self._policy[0]} if self._policy else {0}
        return frozenset(newest.union(*(member.engine.versions_in_use for member in self._members if member.engine)))

    async def generate(self, request: Request) -> Completion:
        """See `Generate`; an `EngineDeadError` says that no member is alive."""
        return await self._by_a_member(lambda engine: engine.generate(request))

    async def score(self, token_ids: Sequence[IntArray], prefix_lengths: Sequence[int]) -> list[FloatArray]:
        """See `ScoreTokens`; sequences are shared out. An `EngineDeadError` says that no member is alive."""

        async def one(sequence: IntArray, prefix_length: int) -> FloatArray:
            (scores,) = await self._by_a_member(lambda engine: engine.score([sequence], [prefix_length]))
            return scores

        return await gather_or_cancel(map(one, token_ids, prefix_lengths))

    async def publish(self, version: int, path: Path) -> None:
        """See `PublishPolicy`. A member that dies meanwhile is left out; returns when all the living serve `version`.

        Raises:
            EngineDeadError: none is alive. EngineError: a member refused the policy.
        """
        async with self._publishing:
            self._raise_if_closed()
            self._policy = version, path
            living = [(member, member.engine) for member in self._members if member.engine]
            publications = (engine.publish(version, path) for _, engine in living)
            for (member, engine), failure in zip(
                living, await asyncio.gather(*publications, return_exceptions=True), strict=True
            ):
                if isinstance(failure, EngineDeadError):
                    self._bury(member, engine, failure)
                elif failure is not None:
                    raise failure
            self._least_loaded()

    def peak_memory_mib(self) -> float:
        """Of the living members together."""
        return sum(member.engine.peak_memory_mib() for member in self._members if member.engine)

    async def close(self) -> None:
        self._closed = True
        for task in self._revivals:
            task.cancel()
        await asyncio.gather(*self._revivals, return_exceptions=True)
        for member in self._members:
            if member.engine:
                await member.engine.close()

    async def _by_a_member(self, call: Callable[[Engine], Awaitable[T]]) -> T:
        """What `call` returns, from the first member that lives to answer it."""
        while True:
            self._raise_if_closed()
            member, engine = self._least_loaded()
            member.in_flight += 1
            try:
                return await call(engine)
            except EngineDeadError as error:
                self._raise_if_closed()
                self._bury(member, engine, error)
            finally:
                member.in_flight -= 1

    def _raise_if_closed(self) -> None:
        if self._closed:
            raise EngineDeadError("the engines were closed")

    def _least_loaded(self) -> tuple[_Member, Engine]:
        living = [(member.in_flight, place) for place, member in enumerate(self._members) if member.engine]
        if not living:
            raise EngineDeadError(f"all {len(self._members)} engines are dead; the last: {self._last_death}")
        member = self._members[min(living)[1]]
        assert member.engine
        return member, member.engine

    def _bury(self, member: _Member, engine: Engine, error: EngineDeadError) -> None:
        """Take a dead engine out, once, and start its place again in the background."""
        if member.engine is not engine:
            return
        member.engine = None
        self._last_death = str(error)
        left = sum(other.engine is not None for other in self._members)
        _log.warning("%s; its requests go to the %d engines left", error, left)
        task = asyncio.create_task(self._revive(member, engine))
        self._revivals.add(task)
        task.add_done_callback(self._revivals.discard)

    async def _revive(self, member: _Member, dead: Engine) -> None:
        with suppress(EngineError):
            await dead.close()
        for attempt in count():
            await self._sleep(min(_LONGEST_BACKOFF, 2.0**attempt))
            try:
                engine = await member.start()
            except (EngineError, InputError):  # not back yet, or back as something else
                continue
            if engine.weight_format is not member.weight_format:
                await engine.close()
                continue
            try:
                async with self._publishing:
                    if self._policy:
                        await engine.publish(*self._policy)
                    member.engine = engine
                    self.restarts += 1
            except EngineError:
                await engine.close()
                continue
            except asyncio.CancelledError:
                await engine.close()
                raise
            _log.warning("an engine is back and serves the current policy")
            return
