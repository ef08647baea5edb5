"""A vLLM OpenAI-compatible server, reached by URL, as an `Engine`.

    adapter   /v1/load_lora_adapter under a new name per version; requests name the adapter, so each is of one version
    merged    pause, load a safetensors file into the running model, resume; /inference/v1/generate tells which weights
              produced which token, so requests in flight go on as in the in-process engine

Policies travel as files that server and trainer both see. What the server must be started with: docs/servers.md.
"""

import asyncio
from collections import ChainMap, Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, assert_never
from uuid import uuid4

import httpx

from treeopo.engines import server_api
from treeopo.engines.http import ServerClient
from treeopo.engines.limits import check_room
from treeopo.engines.server_api import BASE_LABEL, UnknownWeightsError
from treeopo.engines.server_checks import inspect_server
from treeopo.engines.settings import Adapters, EngineOptions
from treeopo.errors import ConfigError, EngineDeadError, EngineError
from treeopo.records import Completion, FloatArray, IntArray, Request, WeightFormat
from treeopo.tasks import gather_or_cancel


class ServerEngine:
    """Make one with `start`, end it with `close`, which leaves the server running.

    Greedy requests and those at temperature 1 are always served; others only if the server's log-probabilities are of
    the distribution it samples from (`--logprobs-mode processed_logprobs`).
    """

    def __init__(
        self, client: ServerClient, model: str, options: EngineOptions, weight_format: WeightFormat, *, tempered: bool
    ) -> None:
        self.weight_format = weight_format
        self.restarts = 0
        self._client = client
        self._base = model
        self._options = options
        self._tempered = tempered
        self._run = uuid4().hex[:12]  # servers outlive runs: names of this one must not meet those of another
        self._version = 0
        self._published = 0
        self._model = model  # what requests name: the base model, or the newest adapter
        self._labels: dict[str, int] = {}  # what the server calls the weights that this run published: their versions
        self._in_flight: Counter[int] = Counter()  # requests by the version they began with
        self._retired: dict[str, int] = {}  # adapters of older versions that are still loaded

    @classmethod
    async def start(
        cls, url: str, model: str, options: EngineOptions, adapters: Adapters | None = None
    ) -> "ServerEngine":
        """Connect to a running server and check that it can do what is asked; it serves policy version 0.

        adapters: the policies that will be published, None if none will be.

        Raises:
            InputError: the URL or the key cannot be used, or the server lacks something; one line says which flag.
            EngineDeadError: the server cannot be reached.
        """
        client = ServerClient(url, options.server, options.max_concurrent)
        try:
            found = await inspect_server(client, model, options, adapters)
        except BaseException:
            await client.close()
            raise
        return cls(client, found.model, options, found.weight_format, tempered=found.tempered)

    @property
    def versions_in_use(self) -> frozenset[int]:
        match self.weight_format:
            case WeightFormat.MERGED:
                return frozenset({self._version})
            case WeightFormat.ADAPTER:
                return frozenset({self._version, *(version for version, count in self._in_flight.items() if count)})
            case _:
                assert_never(self.weight_format)

    async def generate(self, request: Request) -> Completion:
        """See `Generate`. A prompt that leaves no room for `max_tokens` is refused, never cut."""
        self._check(request)
        version, model = self._version, self._model
        # Once something was published, only a restart brings a server's first weights back.
        labels = self._labels if self._published else ChainMap({BASE_LABEL: 0}, self._labels)
        match self.weight_format:
            case WeightFormat.MERGED:
                path = server_api.TOKENS
            case WeightFormat.ADAPTER:
                path = server_api.COMPLETIONS
            case _:
                assert_never(self.weight_format)
        response = await self._ask(path, server_api.body(path, model, request))
        with self._understanding():
            return server_api.completion(response.json(), request, labels, version)

    async def score(self, token_ids: Sequence[IntArray], prefix_lengths: Sequence[int]) -> list[FloatArray]:
        """See `ScoreTokens`: sequences are sent as prompts, and a token that nobody asked for is sampled after each.

        Raises:
            EngineError: the server refused a sequence. EngineDeadError: it is gone.
        """

        async def one(sequence: IntArray, prefix_length: int) -> FloatArray:
            response = await self._ask(server_api.COMPLETIONS, server_api.scoring_body(self._model, sequence))
            with self._understanding():
                return server_api.prompt_logprobs(response.json(), sequence)[prefix_length:]

        return await gather_or_cancel(map(one, token_ids, prefix_lengths))

    async def publish(self, version: int, path: Path) -> None:
        """See `PublishPolicy`. A server that takes only part of a policy counts as dead."""
        match self.weight_format:
            case WeightFormat.ADAPTER:
                await self._load_adapter(version, path)
            case WeightFormat.MERGED:
                await self._load_weights(version, path)
            case _:
                assert_never(self.weight_format)
        self._version = version
        self._published += 1

    def peak_memory_mib(self) -> float:
        """0: the memory of a server is not this process's to count."""
        return 0.0

    async def close(self) -> None:
        """Take this run's adapters out of the server, if it still answers, and hang up."""
        with suppress(EngineError, ConfigError, TimeoutError):
            await asyncio.wait_for(self._unload({*self._retired, self._model} - {self._base}), timeout=5.0)
        await self._client.close()

    async def _ask(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        """What the server says, under the version that it serves now and that the body names."""
        version, model = self._version, self._model
        self._in_flight[version] += 1
        try:
            response = await self._client.generate(path, body)
        finally:
            self._in_flight[version] -= 1
        if response.status_code == 404 and model != self._base:
            raise EngineDeadError(f"{self._client.url} was restarted: it no longer has policy version {version}")
        if not response.is_success:
            raise EngineError(f"{self._client.url} refused a request: {self._client.explain(response)}")
        return response

    @contextmanager
    def _understanding(self) -> Iterator[None]:
        """Errors in an answer name the server."""
        try:
            yield
        except UnknownWeightsError as error:
            raise EngineDeadError(f"{self._client.url} {error}; it was restarted, or another run uses it") from None
        except (EngineError, ValueError) as error:
            raise EngineError(f"{self._client.url}: {error}") from None

    async def _load_adapter(self, version: int, path: Path) -> None:
        name = f"treeopo-{self._run}-{self._published}-v{version}"
        load = {"lora_name": name, "lora_path": str(path.resolve())}
        response = await self._client.call("POST", "/v1/load_lora_adapter", load)
        if not response.is_success:
            raise self._not_taken(version, path, response)
        if self._model != self._base:
            self._retired[self._model] = self._version
        self._model = name
        await self._unload({old for old, of in self._retired.items() if not self._in_flight[of]})

    async def _unload(self, names: set[str]) -> None:
        for name in names:
            self._retired.pop(name, None)
            await self._client.call("POST", "/v1/unload_lora_adapter", {"lora_name": name})

    async def _load_weights(self, version: int, path: Path) -> None:
        label = f"{self._run}-{self._published}-v{version}"
        self._labels[label] = version  # requests in flight may meet it from now on
        # "keep" freezes requests between two tokens; clearing the cache makes them recompute under the new weights.
        for step, body in (
            ("/pause?mode=keep&clear_cache=true", None),
            ("/start_weight_update", None),
            ("/update_weights", {"update_info": {"path": str(path.resolve())}}),
            ("/finish_weight_update", {"weight_version": label}),
            ("/reset_prefix_cache", None),
            ("/resume", None),
        ):
            response = await self._client.call("POST", step, body)
            if not response.is_success:
                raise EngineDeadError(str(self._not_taken(version, path, response)))

    def _check(self, request: Request) -> None:
        check_room(len(request.token_ids), request.max_tokens, self._options.max_model_tokens)
        if request.temperature not in (0.0, 1.0) and not self._tempered:
            raise EngineError(
                f"{self._client.url} returns log-probabilities without the temperature ({request.temperature}); "
                "start it with --logprobs-mode processed_logprobs"
            )

    def _not_taken(self, version: int, path: Path, response: httpx.Response) -> EngineError:
        return EngineError(
            f"{self._client.url} did not take policy version {version}: {self._client.explain(response)}; "
            f"it must see the trainer's {path}"
        )
