"""The seams of the pipeline. Engines and tokenizers have a fake that ships (`treeopo.engines.scripted`); engines also a
conformance suite that ships, `treeopo.engines.conformance`, and that each of ours passes.
"""

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Protocol

from treeopo.records import Completion, FloatArray, IntArray, Problem, Request, WeightFormat

Notify = Callable[[str], None]
"""Told in a few words what comes next, where that takes seconds."""


class Generate(Protocol):
    """Continue one prompt. Many calls are in flight at once; cancelling the task aborts its request.

    The answer depends on prompt, seed and policy alone; at temperature 0 not on the seed. A completion ends with the
    token that completes a stop string, with the end-of-text token, or after `max_tokens`.

    Raises `EngineError` if this request cannot be served, as when prompt and completion together may be longer than the
    engine takes (no prompt or completion is cut in silence), and `EngineDeadError` if none can be.
    """

    async def generate(self, request: Request) -> Completion: ...


class ScoreTokens(Protocol):
    """Log-probabilities of given tokens at temperature 1: under a teacher, or the newest policy of an engine.

    Tokens that `generate` sampled at temperature 1 have the log-probabilities that it returned with them.
    """

    async def score(self, token_ids: Sequence[IntArray], prefix_lengths: Sequence[int]) -> list[FloatArray]:
        """Of every token after the prefix, (C,) a sequence, in the order given; a prefix has a token at least."""
        ...


class PublishPolicy(Protocol):
    """Weight sync: have the engine serve version `version` of the policy, held by `path` in the form `weight_format`.

    On return every request that begins is answered by `version`, each token is stamped with the version that sampled
    it, and no cached prefix of one version serves another. Requests in flight go on: under the new version from here on
    if it travels merged, under their own to their end if it travels as an adapter. `path` must stay as it is while
    `versions_in_use` has its version: the newest, and any that requests in flight began with and may read again.

    Raises `EngineError` if the policy cannot be used, `EngineDeadError` if the engine is gone.
    """

    @property
    def weight_format(self) -> WeightFormat: ...

    @property
    def versions_in_use(self) -> frozenset[int]: ...

    async def publish(self, version: int, path: Path) -> None: ...


class Engine(Generate, ScoreTokens, PublishPolicy, Protocol):
    """An engine that generates, scores and takes new policies. It begins with policy version 0.

    `close` ends every process of its own; calls in flight and calls that follow raise `EngineDeadError`, but `close`
    may be called again. peak_memory_mib: the most memory its processes held so far, 0 where that is not this machine's
    to know. restarts: how often it died or hung and was brought back.
    """

    @property
    def restarts(self) -> int: ...

    def peak_memory_mib(self) -> float: ...

    async def close(self) -> None: ...


class Grade(Protocol):
    """The reward of `text` (a finished solution) in [0, 1]: 1 if its final answer is the problem's, 0 if it is not.

    Raises `GraderError` only where grading cannot go on at all.
    """

    async def __call__(self, problem: Problem, text: str) -> float: ...


class Tokenize(Protocol):
    """Text to token ids and back; the same ids as the engine and the learner use."""

    @property
    def eos_token_id(self) -> int: ...

    @property
    def end_token_ids(self) -> AbstractSet[int]:
        """All tokens at which the model stops, `eos_token_id` among them. They stand for no text."""
        ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, token_ids: list[int]) -> str: ...


class Tracker(Protocol):
    """Takes the metrics of one step after another, by the names of docs/metrics.md. The same step may come again with
    others: an evaluation ends some steps after the policy that it is of.
    """

    def write(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...
