"""The seams of the pipeline. Each port has a real adapter, a fake that ships (`treeopo.engines.scripted`)
and a contract suite in `tests/contract` that every adapter passes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from treeopo.records import Completion, Problem, Request


class Generate(Protocol):
    """Continue one prompt. Many calls are in flight at once; cancelling the task aborts its request.

    Raises `EngineError` if this request cannot be served, `EngineDeadError` if none can be.
    """

    async def generate(self, request: Request) -> Completion: ...


class PublishPolicy(Protocol):
    """Put version `version` of the policy into the engine.

    On return every token sampled from now on comes from `version` and is stamped with it; requests in flight
    continue across the change, and no cached prefix of an older version serves a newer one.
    """

    async def publish(self, version: int, weights: Path) -> None: ...


class Engine(Generate, PublishPolicy, Protocol):
    """An engine that both generates and takes new policies; `close` leaves no process behind."""

    async def close(self) -> None: ...


class Grade(Protocol):
    """Is the final answer in `text` (a finished solution) the problem's? 1.0 or 0.0, never an exception."""

    async def __call__(self, problem: Problem, text: str) -> float: ...


class Tokenize(Protocol):
    """Text to token ids and back; the same ids as the engine and the learner use."""

    @property
    def eos_token_id(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, token_ids: list[int]) -> str: ...


class MetricSink(Protocol):
    """Takes the metrics of one step."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...
