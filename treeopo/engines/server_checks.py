"""What a server must be before a run relies on it; each failure is one line with the flag to start it with."""

from dataclasses import dataclass
from typing import Any, assert_never

import httpx

from treeopo.engines import server_api
from treeopo.engines.http import ServerClient
from treeopo.engines.server_api import BASE_LABEL
from treeopo.engines.settings import Adapters, EngineOptions, publishable_as
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.engines.vllm_plugin import BACKEND
from treeopo.errors import EngineDeadError, ModelError
from treeopo.records import Request, WeightFormat

_TEXT = "1 + 2 = 3, so the answer is 3.\n\n"
_FLAGS = {
    WeightFormat.ADAPTER: "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora",
    WeightFormat.MERGED: (
        f'VLLM_SERVER_DEV_MODE=1, --enable-scale-out and --weight-transfer-config \'{{"backend":"{BACKEND}"}}\''
    ),
}


@dataclass(frozen=True, slots=True)
class Inspected:
    """model: the name requests use. tempered: log-probabilities are of the distribution sampled from."""

    model: str
    weight_format: WeightFormat
    tempered: bool


async def inspect_server(
    client: ServerClient, model: str, options: EngineOptions, adapters: Adapters | None
) -> Inspected:
    """Check health, model, lengths, tokenizer, log-probabilities and the way policies will be published.

    Raises:
        ModelError: the server cannot be used as it was started. EngineDeadError: it cannot be reached.
    """
    if not (await client.call("GET", "/health")).is_success:
        raise EngineDeadError(f"{client.url} says it is not healthy")
    served = await _served_model(client, options)
    tokenizer = ModelTokenizer(model, options.trust_remote_code)
    prompt = tokenizer.begin(_TEXT)[len(tokenizer.opening) :]
    await _check_tokenizer(client, served, prompt, model)
    tempered = await _is_tempered(client, served, prompt)
    weight_format = await _choose_weight_format(client, options, adapters)
    match weight_format:
        case WeightFormat.ADAPTER:
            await _check_untouched(client)
        case WeightFormat.MERGED:
            pass  # what another run left is replaced by the first publication
        case _:
            assert_never(weight_format)
    return Inspected(served, weight_format, tempered)


async def _choose_weight_format(
    client: ServerClient, options: EngineOptions, adapters: Adapters | None
) -> WeightFormat:
    """The one asked for, or else what the server takes: adapters first, which need no development endpoints."""
    if adapters is None:
        return WeightFormat.ADAPTER
    wanted = publishable_as(options, adapters)
    for weight_format in wanted:
        if await _takes(client, weight_format):
            return weight_format
    raise ModelError(f"{client.url} takes no policies; start it with {', or '.join(_FLAGS[one] for one in wanted)}")


async def _takes(client: ServerClient, weight_format: WeightFormat) -> bool:
    match weight_format:
        case WeightFormat.ADAPTER:
            return await _takes_adapters(client)
        case WeightFormat.MERGED:
            return await _takes_weights(client)
        case _:
            assert_never(weight_format)


async def _served_model(client: ServerClient, options: EngineOptions) -> str:
    """The base model's id; adapters name a parent."""
    response = await client.call("GET", "/v1/models")
    try:
        cards = [card for card in response.json()["data"] if not card.get("parent")]
        name, length = str(cards[0]["id"]), int(cards[0]["max_model_len"])
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise ModelError(f"{client.url} does not say what it serves; it must be a vLLM server") from None
    if length < options.max_model_tokens:
        raise ModelError(
            f"{client.url} reads {length} tokens, fewer than the {options.max_model_tokens} asked for: start it with "
            f"--max-model-len {options.max_model_tokens} or lower rollout.max_sequence_tokens (train), "
            "search.max_solution_tokens (mcts build) or max_new_tokens (eval)"
        )
    return name


async def _check_tokenizer(client: ServerClient, served: str, prompt: list[int], model: str) -> None:
    body = {"model": served, "prompt": _TEXT, "add_special_tokens": False}
    found = _json(await client.call("POST", "/tokenize", body)).get("tokens")
    if found is not None and found != prompt:
        raise ModelError(f"{client.url} tokenizes otherwise than {model!r}; name the model that it serves ({served})")


async def _is_tempered(client: ServerClient, served: str, prompt: list[int]) -> bool:
    """Halving the temperature doubles the distances between log-probabilities, if they are of what is sampled."""
    spreads = []
    for temperature in (1.0, 0.5):
        request = Request(prompt, max_tokens=1, seed=0, temperature=temperature)
        body = server_api.body(server_api.COMPLETIONS, served, request) | {"logprobs": 5}
        response = await client.call("POST", server_api.COMPLETIONS, body | {"return_tokens_as_token_ids": True})
        if not response.is_success:
            raise ModelError(f"{client.url} refuses a request for log-probabilities: {client.explain(response)}")
        server_api.completion(_json(response), request, {}, 0)
        top = sorted(_json(response)["choices"][0]["logprobs"]["top_logprobs"][0].values(), reverse=True)[:5]
        spreads.append(top[0] - top[-1])
    return bool(spreads[1] > 1.5 * spreads[0])


async def _check_untouched(client: ServerClient) -> None:
    """A merged policy that an earlier run left behind would pass for the base model."""
    label = _json(await client.call("GET", "/weight_info")).get("weight_version", BASE_LABEL)
    if label != BASE_LABEL:
        raise ModelError(f"{client.url} still has the weights that another run published ({label}); restart it")


async def _takes_adapters(client: ServerClient) -> bool:
    """Loading an adapter that does not exist must fail for that reason alone."""
    body = {"lora_name": "treeopo-check", "lora_path": "/nonexistent/treeopo-check"}
    return "No adapter found" in (await client.call("POST", "/v1/load_lora_adapter", body)).text


async def _takes_weights(client: ServerClient) -> bool:
    information = _json(await client.call("GET", "/server_info?config_format=json"))
    transfer = (information.get("vllm_config") or {}).get("weight_transfer_config") or {}
    tokens = await client.call("POST", server_api.TOKENS, {})  # no request: 400 or 422 where the endpoint is enabled
    return transfer.get("backend") == BACKEND and tokens.status_code not in (403, 404)


def _json(response: httpx.Response) -> dict[str, Any]:
    """The object in a response, empty if there is none."""
    try:
        found = response.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
