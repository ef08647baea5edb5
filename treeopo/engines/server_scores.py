"""A teacher's log-probabilities from vLLM servers: `ScoreTokens` over /v1/completions with `prompt_logprobs`.

A sequence is sent as a prompt and its tokens' log-probabilities come back with it, at temperature 1 whatever the server
samples at. A row that lies with a server when it dies is asked of the others.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from treeopo.engines import server_api
from treeopo.engines.http import ServerClient
from treeopo.engines.server_checks import inspect_server
from treeopo.engines.settings import EngineOptions
from treeopo.errors import EngineDeadError, EngineError
from treeopo.records import FloatArray, IntArray
from treeopo.tasks import gather_or_cancel


class ServerScores:
    """`ScoreTokens` by the servers of `options.urls`. Make it with `start`, end it with `close`."""

    def __init__(self, clients: Mapping[ServerClient, str]) -> None:
        self._served = dict(clients)  # client to the name its server gives the model
        self._asked = dict.fromkeys(clients, 0)  # rows that lie with each server
        self._lost: EngineDeadError | None = None

    @classmethod
    async def start(cls, model: str, options: EngineOptions) -> "ServerScores":
        """Connect to the servers of `options.urls` and check each as `treeopo.engines.server_checks` does.

        Raises:
            InputError: a URL or the key cannot be used, or a server serves something else or too short a context.
            EngineDeadError: a server cannot be reached.
        """
        clients: dict[ServerClient, str] = {}
        try:
            for url in options.urls:
                client = ServerClient(url, options.server, options.max_concurrent)
                clients[client] = ""
                clients[client] = (await inspect_server(client, model, options, adapters=None)).model
        except BaseException:
            await cls(clients).close()
            raise
        return cls(clients)

    async def score(self, token_ids: Sequence[IntArray], prefix_lengths: Sequence[int]) -> list[FloatArray]:
        """See `ScoreTokens`.

        Raises:
            EngineError: a server refused a sequence. EngineDeadError: no server is left.
        """
        return await gather_or_cancel([self._row(*row) for row in zip(token_ids, prefix_lengths, strict=True)])

    async def close(self) -> None:
        for client in self._asked:
            await client.close()

    async def _row(self, token_ids: IntArray, prefix_length: int) -> FloatArray:
        while self._served:
            client = min(self._served, key=self._asked.__getitem__)
            self._asked[client] += 1
            try:
                return await self._ask(client, token_ids, prefix_length)
            except EngineDeadError as error:
                self._served.pop(client, None)
                self._lost = error
            finally:
                self._asked[client] -= 1
        raise EngineDeadError(f"no server of the teacher is left; the last: {self._lost}")

    async def _ask(self, client: ServerClient, token_ids: IntArray, prefix_length: int) -> FloatArray:
        body = server_api.scoring_body(self._served[client], token_ids)
        response = await client.generate(server_api.COMPLETIONS, body)
        if not response.is_success:
            raise EngineError(f"{client.url} refused to score a sequence: {client.explain(response)}")
        try:
            answer: Mapping[str, Any] = response.json()
            return server_api.prompt_logprobs(answer, token_ids)[prefix_length:]
        except (EngineError, ValueError) as error:
            raise EngineError(f"{client.url}: {error}") from None
