"""The seams of the pipeline. Engines and tokenizers have a fake that ships (`treeopo.engines.scripted`); engines also a
contract suite, `tests/contract/engine_contract.py`, that every one of them passes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from treeopo.records import Carrier, Completion, FloatArray, IntArray, Problem, Request


class Generate(Protocol):
    """Continue one prompt. Many calls are in flight at once; cancelling the task aborts its request.

    Raises `EngineError` if this request cannot be served, `EngineDeadError` if none can be.
    """

    async def generate(self, request: Request) -> Completion: ...


class ScoreTokens(Protocol):
    """Log-probabilities of given tokens at temperature 1: under a teacher, or the newest policy of an engine."""

    async def score(self, token_ids: Sequence[IntArray], prefix_lengths: Sequence[int]) -> list[FloatArray]:
        """Of every token after the prefix, (C,) a sequence, in the order given; a prefix has a token at least."""
        ...


class PublishPolicy(Protocol):
    """Put version `version` of the policy into the engine; `path` holds it in the form that `carrier` names.

    On return every request that begins is answered by `version`, each token is stamped with the version that sampled
    it, and no cached prefix of one version serves another. Requests in flight go on: under the new version from here on
    if it travels merged, under their own to their end if it travels as an adapter. `path` must stay as it is while
    `versions_in_use` has its version: the newest, and any that requests in flight began with and may read again.

    Raises `EngineError` if the policy cannot be used, `EngineDeadError` if the engine is gone.
    """

    @property
    def carrier(self) -> Carrier: ...

    @property
    def versions_in_use(self) -> frozenset[int]: ...

    async def publish(self, version: int, path: Path) -> None: ...


class Engine(Generate, ScoreTokens, PublishPolicy, Protocol):
    """An engine that generates, scores and takes new policies; `close` leaves no process of its own behind.

    peak_memory_mib: the most memory its processes held so far, 0 where that is not this machine's to know. restarts:
    how often it died or hung and was brought back.
    """

    @property
    def restarts(self) -> int: ...

    def peak_memory_mib(self) -> float: ...

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
