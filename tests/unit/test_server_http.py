"""Patience towards a server: what is repeated, how long, how fast, and what never leaves the process."""

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from treeopo.engines.http import ServerClient, retry_after
from treeopo.engines.server_settings import ServerSettings, base_url
from treeopo.errors import ConfigError, EngineDeadError

URL = "http://server:8000"
KEY = "sk-very-secret"
Handler = Callable[[httpx.Request], httpx.Response]


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


def client(handler: Handler, clock: Clock, concurrent: int = 8, **settings: float) -> ServerClient:
    return ServerClient(
        URL,
        ServerSettings(**settings),  # type: ignore[arg-type]
        concurrent,
        transport=httpx.MockTransport(handler),
        sleep=clock.sleep,
        clock=clock,
    )


def script(*answers: int | Exception | httpx.Response, health: int = 200) -> tuple[Handler, list[str]]:
    """A server that gives these answers in turn, the last for ever; and the paths it was asked for."""
    paths: list[str] = []

    def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/health":
            return httpx.Response(health)
        answer = answers[min(len(paths), len(answers) - 1)]
        paths.append(request.url.path)
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer, json={}) if isinstance(answer, int) else answer

    return handle, paths


async def test_requests_that_wait_for_a_server_that_is_given_up_end_as_lost_ones() -> None:
    """One of several engines is closed by the first request that loses patience; the others are asked elsewhere."""
    handler, paths = script(httpx.ConnectError("refused"))
    asleep, wake = asyncio.Event(), asyncio.Event()

    async def sleep(seconds: float) -> None:
        asleep.set()
        await wake.wait()

    waiting = ServerClient(URL, ServerSettings(), 8, transport=httpx.MockTransport(handler), sleep=sleep)
    request = asyncio.create_task(waiting.generate("/v1/completions", {}))
    await asleep.wait()
    await waiting.close()
    wake.set()
    with pytest.raises(EngineDeadError, match="given up while a request waited"):
        await request
    assert len(paths) == 1


@pytest.mark.parametrize("trouble", [429, 503, 502, 504, httpx.ConnectError("refused"), httpx.ReadError("reset")])
async def test_a_server_in_passing_trouble_is_asked_again_after_growing_pauses(trouble: int | Exception) -> None:
    handler, paths = script(trouble, trouble, trouble, 200)
    clock = Clock()
    assert (await client(handler, clock).generate("/v1/completions", {})).status_code == 200
    assert len(paths) == 4
    assert 0.875 <= clock.now - 1000 <= 1.75  # half to all of 1/4 + 1/2 + 1 seconds


async def test_pauses_are_of_uneven_length_so_that_clients_do_not_return_together() -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    handler, _ = script(*[429] * 8, 200)
    posted = ServerClient(URL, ServerSettings(), 1, transport=httpx.MockTransport(handler), sleep=sleep)
    await posted.generate("/x", {})
    shares = [pause / min(8.0, 0.25 * 2**attempt) for attempt, pause in enumerate(pauses)]
    assert len(shares) == 8
    assert all(0.5 <= share <= 1.0 for share in shares)
    assert len(set(shares)) > 1


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_retry_after_is_waited_out_by_every_request(form: str) -> None:
    header = "7" if form == "seconds" else format_datetime(datetime.now(UTC) + timedelta(seconds=9), usegmt=True)
    handler, paths = script(httpx.Response(429, headers={"Retry-After": header}), 200)
    clock = Clock()
    posted = client(handler, clock)
    await asyncio.gather(posted.generate("/a", {}), posted.generate("/b", {}))
    assert len(paths) == 3
    assert 1004 <= clock.now <= 1010


@pytest.mark.parametrize("header", ["", "soon", "-3"])
def test_a_retry_after_that_says_nothing_is_not_heeded(header: str) -> None:
    assert retry_after(httpx.Response(503, headers={"Retry-After": header})) is None


async def test_a_server_busy_for_too_long_counts_as_dead() -> None:
    clock = Clock()
    with pytest.raises(EngineDeadError, match=r"^http://server:8000 is busy: .*\(503\); gave up after \d+ s$"):
        await client(script(503)[0], clock, busy_seconds=60).generate("/x", {})
    assert 60 <= clock.now - 1000 < 70


async def test_a_lost_server_is_given_up_sooner_than_a_busy_one() -> None:
    clock = Clock()
    with pytest.raises(EngineDeadError, match="is lost: ConnectError refused; gave up after"):
        await client(script(httpx.ConnectError("refused"))[0], clock).generate("/x", {})
    assert 10 <= clock.now - 1000 < 20


async def test_an_hour_s_retry_after_does_not_outlast_the_limit() -> None:
    clock = Clock()
    busy = httpx.Response(429, headers={"Retry-After": "3600"})
    with pytest.raises(EngineDeadError, match="is busy"):
        await client(script(busy)[0], clock, busy_seconds=30).generate("/x", {})
    assert clock.now - 1000 < 100


async def test_an_internal_error_of_a_healthy_server_is_that_request_s_and_is_not_repeated() -> None:
    handler, paths = script(500)
    assert (await client(handler, Clock()).generate("/x", {})).status_code == 500
    assert len(paths) == 1


@pytest.mark.parametrize("health", [503, 500])
async def test_an_internal_error_of_an_unhealthy_server_means_that_its_engine_died(health: int) -> None:
    handler, paths = script(httpx.Response(500, json={"error": {"message": "EngineCore died"}}), health=health)
    with pytest.raises(EngineDeadError, match=r"is lost: EngineCore died \(500\)"):
        await client(handler, Clock()).generate("/x", {})
    assert len(paths) > 1


async def test_a_hung_server_is_not_waited_for_twice() -> None:
    clock = Clock()

    def hang(request: httpx.Request) -> httpx.Response:
        clock.now += 600
        raise httpx.ReadTimeout("no answer")

    with pytest.raises(EngineDeadError, match="ReadTimeout"):
        await client(hang, clock).generate("/x", {})
    assert clock.now - 1000 == 600


async def test_no_more_requests_are_open_at_once_than_the_limit() -> None:
    open_now = peak = 0

    async def slow(request: httpx.Request) -> httpx.Response:
        nonlocal open_now, peak
        open_now += 1
        peak = max(peak, open_now)
        await asyncio.sleep(0.001)
        open_now -= 1
        return httpx.Response(200, json={})

    posted = ServerClient(URL, ServerSettings(), 3, transport=httpx.MockTransport(slow))
    await asyncio.gather(*(posted.generate("/x", {}) for _ in range(20)))
    assert peak == 3


async def test_requests_keep_to_the_rate_and_publications_do_not_wait_for_it() -> None:
    handler, paths = script(200)
    posted = ServerClient(URL, ServerSettings(requests_per_second=20), 50, transport=httpx.MockTransport(handler))
    asking = [asyncio.create_task(posted.generate("/x", {})) for _ in range(22)]
    await asyncio.sleep(0.05)
    assert len(paths) == 20
    await posted.call("POST", "/publish")
    assert paths[-1] == "/publish"
    await asyncio.gather(*asking)
    assert len(paths) == 23


async def test_the_key_goes_into_the_header_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TREEOPO_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    seen: list[str] = []

    def tell(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["Authorization"])
        return httpx.Response(503, json={"error": f"your key {KEY} is out of credit"})

    with pytest.raises(EngineDeadError, match=r"your key [*]{3} is out of credit") as caught:
        await client(tell, Clock()).generate("/x", {})
    assert set(seen) == {f"Bearer {KEY}"}
    assert KEY not in str(caught.value) + caplog.text + repr(ServerSettings())


async def test_the_key_may_come_from_another_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    seen: list[str] = []

    def tell(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["Authorization"])
        return httpx.Response(200, json={})

    settings = ServerSettings(api_key_variable="MY_KEY")
    await ServerClient(URL, settings, 1, transport=httpx.MockTransport(tell)).generate("/x", {})
    assert seen == [f"Bearer {KEY}"]


@pytest.mark.parametrize(("key", "words"), [("", "wants an API key; put it into"), (KEY, "refuses the API key in")])
async def test_a_refused_key_is_the_user_s_to_mend(monkeypatch: pytest.MonkeyPatch, key: str, words: str) -> None:
    monkeypatch.setenv("TREEOPO_API_KEY", key)
    with pytest.raises(ConfigError, match=f"{words} TREEOPO_API_KEY") as caught:
        await client(script(401)[0], Clock()).generate("/x", {})
    assert KEY not in str(caught.value)


def test_a_key_that_no_header_can_carry_is_refused_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREEOPO_API_KEY", "käse")
    with pytest.raises(ConfigError, match="TREEOPO_API_KEY has characters") as caught:
        client(script(200)[0], Clock())
    assert "käse" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://h:8000", "http://h:8000/", "http://h:8000/v1", "http://h:8000/v1/"])
def test_a_url_is_taken_with_and_without_v1(url: str) -> None:
    assert base_url(url) == "http://h:8000"


@pytest.mark.parametrize("url", ["", "h:8000", "ftp://h", "http://", "http://h:port", "/tmp/model"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="written as http://host:8000"):
        base_url(url)


@pytest.mark.parametrize("url", [f"http://me:{KEY}@h:80", f"https://h/v1?api_key={KEY}", f"https://h/#{KEY}"])
def test_a_url_with_a_secret_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ConfigError, match="TREEOPO_API_KEY") as caught:
        base_url(url)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("wrong", [{"requests_per_second": 0}, {"busy_seconds": 0}, {"lost_seconds": -1}])
def test_settings_out_of_bounds_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="it must be positive"):
        ServerSettings(**wrong)  # type: ignore[arg-type]
