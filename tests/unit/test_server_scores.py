"""A teacher behind URLs: each token's own log-probability comes back, whichever server is left to give it."""

import asyncio
import json
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest

from treeopo.config import TrainConfig, load_config
from treeopo.engines.balanced import BalancedEngine
from treeopo.engines.http import ServerClient
from treeopo.engines.server import ServerEngine
from treeopo.engines.server_settings import ServerSettings
from treeopo.engines.settings import EngineOptions
from treeopo.errors import ConfigError, EngineDeadError, EngineError
from treeopo.ports import Engine
from treeopo.records import IntArray, WeightFormat


class FakeTeacher:
    """Gives token t at position i the log-probability -(t + i / 100); dies after `answers` of them."""

    def __init__(self, answers: int = 1_000) -> None:
        self.answers = answers
        self.scored = 0
        self.bodies: list[dict[str, object]] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0)
        if self.scored == self.answers:
            raise httpx.ConnectError("gone")
        self.scored += 1
        body = json.loads(request.content)
        self.bodies.append(body)
        rows = [{str(token): {"logprob": -(token + place / 100)}} for place, token in enumerate(body["prompt"])]
        return httpx.Response(200, json={"choices": [{"prompt_logprobs": [None, *rows[1:]]}]})


async def teacher_of(*transports: httpx.MockTransport) -> Engine:
    """The engine of one server or several; a dead one never comes back."""

    async def start(index: int, transport: httpx.MockTransport) -> Engine:
        client = ServerClient(f"http://t{index}", ServerSettings(lost_seconds=0.01), 4, transport=transport)
        return ServerEngine(client, "m", EngineOptions(), WeightFormat.ADAPTER, tempered=True)

    async def for_ever(seconds: float) -> None:
        await asyncio.Event().wait()

    starts = [partial(start, *each) for each in enumerate(transports)]
    return await starts[0]() if len(starts) == 1 else await BalancedEngine.start(starts, for_ever)


ROWS: list[IntArray] = [np.arange(length, dtype=np.int32) for length in (2, 5, 9, 6)]
PREFIXES = [1, 2, 8, 6]


def expected() -> list[list[float]]:
    return [
        [-(place + place / 100) for place in range(prefix, len(row))]
        for row, prefix in zip(ROWS, PREFIXES, strict=True)
    ]


async def test_the_tokens_after_the_prefix_come_back_in_the_order_asked() -> None:
    teacher = FakeTeacher()
    scores = await (await teacher_of(httpx.MockTransport(teacher))).score(ROWS, PREFIXES)
    for score, wanted in zip(scores, expected(), strict=True):
        np.testing.assert_allclose(score, wanted, rtol=1e-6)
        assert score.dtype == np.float32
    assert all(body["temperature"] == 1.0 and body["top_p"] == 1.0 for body in teacher.bodies)


async def test_rows_are_shared_out_and_a_dead_server_s_are_asked_of_the_other() -> None:
    dying, living = FakeTeacher(answers=1), FakeTeacher()
    teacher = await teacher_of(httpx.MockTransport(dying), httpx.MockTransport(living))
    scores = await teacher.score(ROWS, PREFIXES)
    await teacher.close()
    for score, wanted in zip(scores, expected(), strict=True):
        np.testing.assert_allclose(score, wanted, rtol=1e-6)
    assert (dying.scored, living.scored) == (1, 3)


@pytest.mark.parametrize(
    ("servers", "complaint"), [(1, "http://t0 is lost"), (2, "all 2 engines are dead; the last: http")]
)
async def test_no_server_left_is_an_error_that_names_one(servers: int, complaint: str) -> None:
    teacher = await teacher_of(*(httpx.MockTransport(FakeTeacher(answers=0)) for _ in range(servers)))
    for _ in range(2):  # the batch after the one that lost it, too
        with pytest.raises(EngineDeadError, match=complaint):
            await teacher.score(ROWS, PREFIXES)
    await teacher.close()


@pytest.mark.parametrize(
    "answer",
    [{"choices": [{"text": "x"}]}, {"choices": [{"prompt_logprobs": [None, {"7": {"logprob": -1.0}}]}]}],
    ids=["unscored", "of other tokens"],
)
async def test_an_answer_that_does_not_score_these_tokens_is_refused(answer: dict[str, object]) -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json=answer))
    with pytest.raises(EngineError, match=r"http://t0: the answer does not score the prompt"):
        await (await teacher_of(transport)).score(ROWS[:1], PREFIXES[:1])


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"method": "tree-opo"}, "teacher_urls is for methods .* tree-opo has no use for it"),
        ({"method": "tree-opo-kl", "kl": {"estimate": "full"}}, "kl.estimate sampled"),
        ({"method": "mcts-reinforce"}, "teacher_urls is for methods .* mcts-reinforce has no use for it"),
        ({"method": "reinforce-kl", "teacher_urls": ("http://a", "http://a/")}, "names a server twice"),
    ],
)
def test_servers_that_nobody_would_ask_are_refused(tmp_path: Path, settings: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_config(TrainConfig, file=None, flags={"output": tmp_path, "teacher_urls": ("http://a",), **settings})
