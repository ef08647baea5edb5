"""An engine without vLLM: transformers on this process's device, one request after the other. Slow, exact, short.

treeopo train trees.zarr --student MODEL --set engine.kind=examples.transformers_engine:start
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from treeopo.engines.limits import check_room
from treeopo.engines.settings import Adapters, EngineOptions
from treeopo.engines.stops import StopTokens
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.errors import EngineDeadError, EngineError
from treeopo.ports import Engine
from treeopo.records import Completion, FinishReason, FloatArray, IntArray, Request, WeightFormat


class TransformersEngine:
    weight_format = WeightFormat.MERGED
    restarts = 0

    def __init__(self, model: str, options: EngineOptions) -> None:
        self.options = options
        self.module: Any = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, options.dtype)).eval()
        self.tokenizer = ModelTokenizer(model, options.trust_remote_code)
        self.stops = StopTokens(self.tokenizer.hf)
        self.version = 0
        self.closed = False

    @property
    def versions_in_use(self) -> frozenset[int]:
        return frozenset({self.version})

    async def generate(self, request: Request) -> Completion:
        check_room(len(request.token_ids), request.max_tokens, self.options.max_model_tokens)
        prompt = [int(token) for token in request.token_ids]
        random = torch.Generator().manual_seed(request.seed)
        said: list[int] = []
        logprobs: list[float] = []
        versions: list[int] = []
        reason = FinishReason.LENGTH
        while len(said) < request.max_tokens and reason is FinishReason.LENGTH:
            await asyncio.sleep(0)  # other requests, publications and cancellation have their turn between two tokens
            last = self.log_softmax([*prompt, *said], request.temperature or 1.0)[-1]
            token = int(torch.multinomial(last.exp(), 1, generator=random) if request.temperature else last.argmax())
            said.append(token)
            logprobs.append(float(last[token]))
            versions.append(self.version)
            if token in self.tokenizer.end_token_ids or self.stops.end(said, request.stop).stopped:
                reason = FinishReason.STOP
        return Completion(
            token_ids=np.array(said, np.int32),
            logprobs=np.array(logprobs, np.float32),
            versions=np.array(versions, np.int32),
            text=self.stops.end(said, request.stop).text,
            finish_reason=reason,
        )

    async def score(self, token_ids: Sequence[IntArray], prefix_lengths: Sequence[int]) -> list[FloatArray]:
        scores = []
        for ids, length in zip(token_ids, prefix_lengths, strict=True):
            await asyncio.sleep(0)
            table = self.log_softmax(ids.tolist(), 1.0)[length - 1 : -1]
            scores.append(table.gather(1, torch.tensor(ids[length:, None], dtype=torch.long))[:, 0].numpy())
        return scores

    async def publish(self, version: int, path: Path) -> None:
        self.raise_if_closed()
        try:
            self.module.load_state_dict(load_file(path), strict=False)  # a tied head is not in the file
        except (OSError, RuntimeError) as error:
            raise EngineError(f"policy version {version} at {path} cannot be loaded: {error}") from error
        self.version = version

    def log_softmax(self, ids: list[int], temperature: float) -> torch.Tensor:
        """(T, V) of the tokens after each of `ids`."""
        self.raise_if_closed()
        with torch.inference_mode():
            return torch.log_softmax(self.module(torch.tensor([ids])).logits[0].float() / temperature, -1)

    def raise_if_closed(self) -> None:
        if self.closed:
            raise EngineDeadError("the engine was closed")

    def peak_memory_mib(self) -> float:
        return 0.0  # it has no process of its own

    async def close(self) -> None:
        self.closed = True


async def start(model: str, options: EngineOptions, adapters: Adapters | None) -> Engine:
    return TransformersEngine(model, options)
