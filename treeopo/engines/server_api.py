"""What a request and its answer look like on the two endpoints of vLLM's server that take and give token ids.

    /v1/completions          every `vllm serve` has it; an answer is of one policy, the model or adapter it names
    /inference/v1/generate   with --enable-scale-out; an answer tells which weights produced which token

Every parameter that shapes the distribution is sent, so a default on the server's side (its generation config) has no
say. Log-probabilities arrive as JSON numbers that read back as the engine's own float32.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from treeopo.errors import EngineError
from treeopo.records import Completion, FinishReason, FloatArray, IntArray, Request

COMPLETIONS = "/v1/completions"
TOKENS = "/inference/v1/generate"
BASE_LABEL = "default"
"""What vLLM calls the weights that a server was started with: version 0."""

_NEUTRAL = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


class UnknownWeightsError(EngineError):
    """Some token is of weights that nobody here published."""


def body(path: str, model: str, request: Request) -> dict[str, Any]:
    """The JSON to post to `path` (`COMPLETIONS` or `TOKENS`) to have `model` answer `request`."""
    prompt = [int(token) for token in request.token_ids]
    sampling = {
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "seed": request.seed,
        "stop": list(request.stop),
        "include_stop_str_in_output": True,
        "logprobs": 0,  # of the sampled token alone
        **_NEUTRAL,
    }
    if path == TOKENS:
        return {"model": model, "token_ids": prompt, "sampling_params": sampling, "output_mode": "text"}
    return {"model": model, "prompt": prompt, "return_token_ids": True, **sampling}


def scoring_body(model: str, token_ids: IntArray) -> dict[str, Any]:
    """The JSON to post to `COMPLETIONS` for the log-probabilities of these tokens; one more is sampled and ignored."""
    prompt = [int(token) for token in token_ids]
    return {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0, **_NEUTRAL}


def prompt_logprobs(answer: Mapping[str, Any], token_ids: IntArray) -> FloatArray:
    """(T,) log-probability of each token of the prompt given those before it, NaN at the first.

    Raises:
        EngineError: the answer has none, or not of these tokens.
    """
    try:
        rows = answer["choices"][0]["prompt_logprobs"]
        known = [row[str(token)]["logprob"] for row, token in zip(rows[1:], token_ids[1:], strict=True)]
    except (KeyError, IndexError, TypeError, ValueError):
        raise EngineError("the answer does not score the prompt; a vLLM server of 0.32 is needed") from None
    return np.asarray([np.nan, *known], np.float32)


def completion(answer: Mapping[str, Any], request: Request, version_of: Mapping[str, int], default: int) -> Completion:
    """The record of an answer of either endpoint. Tokens are of version `default`, unless the answer names weights by
    the labels of `version_of`.

    Raises:
        EngineError: it is not what was asked for (no token ids, cut short).
        UnknownWeightsError: it names weights that `version_of` does not.
    """
    try:
        choice = answer["choices"][0]
        token_ids = np.asarray(choice["token_ids"], dtype=np.int32)
        logprobs = np.asarray(_logprobs(choice["logprobs"]), dtype=np.float32)
        text, reason = choice["text"], choice["finish_reason"]
    except (KeyError, IndexError, TypeError, ValueError):
        raise EngineError(
            "the answer has no token ids with log-probabilities; a vLLM server of 0.32 is needed"
        ) from None
    if len(token_ids) != len(logprobs) or reason not in ("stop", "length"):
        raise EngineError(f"the request ended early ({reason})")
    if reason == "length" and len(token_ids) < request.max_tokens:
        raise EngineError(
            f"the server cut a completion at {len(token_ids)} of {request.max_tokens} tokens; "
            "start it with --generation-config vllm and room for prompt and completion"
        )
    versions = np.full(len(token_ids), default, dtype=np.int32)
    for span in choice.get("weight_versions") or ():
        if span["version"] not in version_of:
            raise UnknownWeightsError(f"has weights that this run did not publish ({span['version']})")
        versions[span["start"] : span["end"]] = version_of[span["version"]]
    return Completion(token_ids, logprobs, versions, text, FinishReason(reason))


def _logprobs(found: Mapping[str, Any]) -> list[float]:
    """Of the sampled tokens, as either endpoint writes them."""
    if "token_logprobs" in found:
        return list(found["token_logprobs"])
    return [step["logprob"] for step in found["content"]]
