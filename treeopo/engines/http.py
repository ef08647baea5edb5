"""An HTTP client of one inference server: connection pool, bounded concurrency, rate limit, retries, API key.

    429, 503 (busy)                          wait as told by Retry-After, else back off, for `busy_seconds` at most
    no connection, reset, timeout, 502, 504  back off, for `lost_seconds` at most; 500 likewise unless /health is well
    401                                      ConfigError: the key
    other 4xx, 500 while healthy             returned: this request's fault, not the server's

Past its limit a failure is an `EngineDeadError`. Requests are repeated as they are: an answer depends on the request
and the policy alone.
"""

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import ceil
from typing import Any

import httpx
from asyncio_throttle import Throttler

from treeopo.engines.server_settings import ServerSettings, base_url
from treeopo.errors import ConfigError, EngineDeadError

_BUSY = {429, 503}
_LOST = {502, 504}
_FIRST_BACKOFF, _LONGEST_BACKOFF = 0.25, 8.0  # seconds


class ServerClient:
    """Posts to `url`. `transport`, `sleep` and `clock` are for tests.

    Raises:
        ConfigError: the URL or the key cannot be used.
    """

    def __init__(
        self,
        url: str,
        settings: ServerSettings,
        max_concurrent: int,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = base_url(url)
        self._settings = settings
        self._key = _api_key(settings.api_key_variable)
        self._http = httpx.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx.Timeout(settings.answer_seconds, connect=5.0, pool=None),
            limits=httpx.Limits(max_connections=max_concurrent + 4),  # publications pass while every slot is busy
            transport=transport,
        )
        self._slots = asyncio.Semaphore(max_concurrent)
        rate = settings.requests_per_second
        self._throttler = Throttler(ceil(rate), period=ceil(rate) / rate) if rate else None
        self._sleep = sleep
        self._clock = clock
        self._jitter = random.Random()  # no result depends on it
        self._closed_until = 0.0  # the server asked every request, not one, to stay away until then

    async def generate(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        """Post a request for tokens: waits for a slot and for the rate limit."""
        async with self._slots:
            return await self.call("POST", path, body, throttled=True)

    async def call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, throttled: bool = False
    ) -> httpx.Response:
        """The response to a request, repeated until it is a success or a refusal of this very request.

        Raises:
            EngineDeadError: the server was busy or lost for too long, or was given up (`close`) meanwhile.
            ConfigError: it refuses the key.
        """
        began: dict[str, float] = {}
        attempt = 0
        while True:
            await self._wait_turn(throttled)
            if self._http.is_closed:  # another request had waited long enough
                raise EngineDeadError(f"{self.url} was given up while a request waited for it")
            asked = self._clock()
            trouble, reason, response = await self._attempt(method, path, body)
            if trouble is None:
                assert response is not None
                return response
            now = self._clock()
            waited = now - began.setdefault(trouble, asked)
            limit = self._settings.busy_seconds if trouble == "busy" else self._settings.lost_seconds
            if waited >= limit:
                raise EngineDeadError(f"{self.url} is {trouble}: {reason}; gave up after {waited:.0f} s")
            pause = min(_LONGEST_BACKOFF, _FIRST_BACKOFF * 2**attempt) * self._jitter.uniform(0.5, 1.0)
            if response is not None and (told := retry_after(response)) is not None:
                self._closed_until = max(self._closed_until, now + min(told, limit))
            attempt += 1
            await self._sleep(min(pause, limit))

    def explain(self, response: httpx.Response) -> str:
        """The server's own words about a refusal, in one line and without the key."""
        try:
            found = response.json().get("error", response.text)
            said = found.get("message", found) if isinstance(found, dict) else found
        except (ValueError, AttributeError):
            said = response.text
        return self._without_key(f"{' '.join(str(said).split())[:300] or 'no reason given'} ({response.status_code})")

    async def close(self) -> None:
        """Hang up; requests that are waiting for another attempt make none."""
        await self._http.aclose()

    async def _wait_turn(self, throttled: bool) -> None:
        while (left := self._closed_until - self._clock()) > 0:
            await self._sleep(left)
        if throttled and self._throttler:
            await self._throttler.acquire()

    async def _attempt(
        self, method: str, path: str, body: Mapping[str, Any] | None
    ) -> tuple[str | None, str, httpx.Response | None]:
        """("busy", "lost" or None if the response counts; the reason; the response if there was one)."""
        try:
            response = await self._http.request(method, path, json=body)
        except httpx.TransportError as error:
            return "lost", self._without_key(f"{type(error).__name__} {error}".strip()), None
        if response.status_code == 401:
            where = self._settings.api_key_variable
            trouble = f"refuses the API key in {where}" if self._key else f"wants an API key; put it into {where}"
            raise ConfigError(f"{self.url} {trouble}")
        if response.status_code in _BUSY:
            return "busy", self.explain(response), response
        if response.status_code in _LOST or (response.status_code == 500 and not await self._is_healthy()):
            return "lost", self.explain(response), response
        return None, "", response

    async def _is_healthy(self) -> bool:
        if self._http.is_closed:
            return False
        try:
            return (await self._http.get("/health", timeout=5.0)).is_success
        except httpx.TransportError:
            return False

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def retry_after(response: httpx.Response) -> float | None:
    """Seconds asked for by the Retry-After header, given in seconds or as a date (RFC 9110, 10.2.3)."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isdigit():
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


def _api_key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"the API key in {variable} has characters that no HTTP header may carry")
    return key
