"""An engine without a model, for tests and simulations: a Python function plays the policy.

It passes the same conformance suite as a real engine (`treeopo.engines.conformance`) and needs asyncio alone, so search
and pipeline can be tested against probabilities that are known exactly.

    policy(prompt text, rng, version) ─▶ the whole rest of the solution ─▶ cut at stop string, limit or end of text
"""

import asyncio
import random
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import assert_never

import numpy as np

from treeopo.engines.limits import check_room
from treeopo.errors import EngineDeadError, EngineError
from treeopo.ports import Tokenize
from treeopo.records import Completion, FinishReason, FloatArray, IntArray, Problem, Request, WeightFormat

Pieces = Sequence[tuple[str, float]]
"""A continuation in pieces, each with its log-probability; the first token of a piece carries it, the others 0."""

ScriptedPolicy = Callable[[str, random.Random, int], Pieces]
"""(prompt text, random stream of this request, policy version) to the whole rest of the solution."""

Likelihood = Callable[[str, str], float | Pieces]
"""(prefix text, text after it) to the log-probability of that text, in pieces or as one."""

BURSTS = 4
"""A completion's tokens arrive in this many equal bursts, so one that a publication overtakes spans two versions."""


class CharTokenizer:
    """One token per character, its id the code point; id 0 ends a text and decodes to nothing."""

    eos_token_id = 0
    end_token_ids: AbstractSet[int] = frozenset({0})
    is_instruct: bool = False

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    begin = encode

    def escape(self, text: str) -> str:
        return text

    def decode(self, token_ids: list[int]) -> str:
        return "".join(chr(token) for token in token_ids if token)


@dataclass(frozen=True, slots=True)
class TreeWorld:
    """A policy over a known tree: `depth` steps of `branching` equally likely letters, then a right or wrong answer.

    The solution of letters (a, c) reads "a\\n\\nc\\n\\n#### 1"; it is right with probability `success(letters so far)`.
    """

    branching: int
    depth: int
    success: Callable[[str], float]
    separator: str = "\n\n"
    question: str = "?\n\n"

    def problem(self, name: str) -> Problem:
        return Problem(id=name, question=self.question, answer="1")

    def __call__(self, prompt: str, rng: random.Random, version: int) -> Pieces:
        letters = self._letters(prompt)
        pieces = []
        while len(letters) < self.depth:
            letters += chr(ord("a") + rng.randrange(self.branching))
            pieces.append((letters[-1] + self.separator, -log(self.branching)))
        chance = self.success(letters)
        right = rng.random() < chance
        return [*pieces, ("#### 1", log(chance)) if right else ("#### 0", log(1 - chance))]

    def likelihood(self, prefix: str, text: str) -> Pieces:
        """The log-probabilities with which this policy samples `text` after `prefix`; see `Likelihood`."""
        letters = self._letters(prefix)
        pieces: list[tuple[str, float]] = []
        while text and len(letters) < self.depth:
            letters += text[0]
            pieces.append((text[: 1 + len(self.separator)], -log(self.branching)))
            text = text[1 + len(self.separator) :]
        if text:
            chance = self.success(letters)
            pieces.append((text, log(chance if text.endswith("1") else 1 - chance)))
        return pieces

    def _letters(self, prompt: str) -> str:
        """Of the finished steps."""
        return "".join(prompt.removeprefix(self.question).split(self.separator)[:-1])

    def is_right(self, problem: Problem, text: str) -> bool:
        return text.endswith(f"#### {problem.answer}")

    async def grade(self, problem: Problem, text: str) -> float:
        return float(self.is_right(problem, text))


class ScriptedEngine:
    """`Engine` whose answer is a function of (prompt, seed, version), whatever else is in flight.

    weight_format: under MERGED a publication overtakes requests in flight, under ADAPTER it does not. latency: seconds
    until a request is answered, passed to `sleep` (inject a simulated clock's). failures: what to raise at the n-th
    request, counted from 0; after an `EngineDeadError` every request fails. likelihood: what `score` answers by; a
    policy only samples. max_model_tokens: of prompt and completion together, None if nothing is too long.
    """

    def __init__(
        self,
        policy: ScriptedPolicy,
        tokenize: Tokenize | None = None,
        *,
        weight_format: WeightFormat = WeightFormat.MERGED,
        latency: Callable[[Request], float] = lambda request: 0.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        failures: Mapping[int, EngineError] | None = None,
        likelihood: Likelihood | None = None,
        max_model_tokens: int | None = None,
    ) -> None:
        self.tokenize: Tokenize = tokenize or CharTokenizer()
        self.weight_format = weight_format
        self.version = 0
        self.restarts = 0
        self.tokens = 0
        self.published: list[tuple[int, Path]] = []
        self.requests = 0
        self.in_flight = 0
        self.peak_in_flight = 0
        self._policy = policy
        self._latency = latency
        self._sleep = sleep
        self._failures = failures or {}
        self._likelihood = likelihood
        self._max_model_tokens = max_model_tokens
        self._dead: EngineDeadError | None = None
        self._began: Counter[int] = Counter()  # versions that requests in flight began with

    async def generate(self, request: Request) -> Completion:
        """Answer one request; raises `EngineError` where the script says so and `EngineDeadError` once dead."""
        number = self.requests
        self.requests += 1
        self.in_flight += 1
        began = self.version
        self._began[began] += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        try:
            self._raise_if_failing(number)
            if self._max_model_tokens is not None:
                check_room(len(request.token_ids), request.max_tokens, self._max_model_tokens)
            completion = self._answer(request)
            seconds = self._latency(request) / BURSTS
            for burst in np.array_split(completion.versions, BURSTS):
                await self._sleep(seconds)
                if self._dead:
                    raise self._dead
                self.tokens += len(burst)
                match self.weight_format:
                    case WeightFormat.MERGED:
                        burst[:] = self.version
                    case WeightFormat.ADAPTER:
                        pass
                    case _:
                        assert_never(self.weight_format)
            return completion
        finally:
            self.in_flight -= 1
            self._began[began] -= 1

    async def score(self, token_ids: Sequence[IntArray], prefix_lengths: Sequence[int]) -> list[FloatArray]:
        """See `ScoreTokens`; raises `EngineError` if no likelihood was scripted, `EngineDeadError` once dead."""
        if self._dead:
            raise self._dead
        if self._likelihood is None:
            raise EngineError("this scripted engine has no likelihood to score by")
        scores = []
        for ids, length in zip(token_ids, prefix_lengths, strict=True):
            if self._max_model_tokens is not None:
                check_room(len(ids), 1, self._max_model_tokens)
            prefix, text = (self.tokenize.decode(part.tolist()) for part in (ids[:length], ids[length:]))
            found = self._likelihood(prefix, text)
            _, logprobs = self._lay_out([(text, found)] if isinstance(found, float | int) else found)
            score = np.zeros(len(ids) - length, np.float32)
            score[: len(logprobs)] = logprobs[: len(score)]
            scores.append(score)
        return scores

    @property
    def versions_in_use(self) -> frozenset[int]:
        match self.weight_format:
            case WeightFormat.MERGED:
                return frozenset({self.version})
            case WeightFormat.ADAPTER:
                return frozenset({self.version, *(version for version, count in self._began.items() if count)})
            case _:
                assert_never(self.weight_format)

    async def publish(self, version: int, path: Path) -> None:
        if self._dead:
            raise self._dead
        self.version = version
        self.published.append((version, path))

    def peak_memory_mib(self) -> float:
        return 0.0

    async def close(self) -> None:
        self._dead = EngineDeadError("the scripted engine was closed")

    def _raise_if_failing(self, number: int) -> None:
        if self._dead:
            raise self._dead
        error = self._failures.get(number)
        if isinstance(error, EngineDeadError):
            self._dead = error
        if error:
            raise error

    def _answer(self, request: Request) -> Completion:
        prompt_ids = [int(token) for token in request.token_ids]
        seed = request.seed if request.temperature > 0 else 0  # greedy: the seed has no say
        rng = random.Random(zlib.crc32(np.array(prompt_ids, np.int32).tobytes()) << 64 | seed)
        token_ids, logprobs = self._lay_out(self._policy(self.tokenize.decode(prompt_ids), rng, self.version))
        token_ids.append(self.tokenize.eos_token_id)
        logprobs.append(0.0)
        length, reason = self._cut(token_ids, request)
        return Completion(
            token_ids=np.array(token_ids[:length], np.int32),
            logprobs=np.array(logprobs[:length], np.float32),
            versions=np.full(length, self.version, np.int32),
            text=self.tokenize.decode(token_ids[:length]),
            finish_reason=reason,
        )

    def _lay_out(self, pieces: Pieces) -> tuple[list[int], list[float]]:
        """Token ids and log-probabilities of the pieces, one after the other."""
        token_ids: list[int] = []
        logprobs: list[float] = []
        for piece, logprob in pieces:
            ids = self.tokenize.encode(piece)
            token_ids += ids
            logprobs += [logprob, *[0.0] * (len(ids) - 1)] if ids else []
        return token_ids, logprobs

    def _cut(self, token_ids: list[int], request: Request) -> tuple[int, FinishReason]:
        """How many tokens a real engine would have returned, and why it would have stopped there."""
        limit = min(len(token_ids), request.max_tokens)
        if request.stop:
            text = ""
            for length, token in enumerate(token_ids[:limit], 1):
                text += self.tokenize.decode([token])
                if any(stop in text for stop in request.stop):
                    return length, FinishReason.STOP
        return limit, FinishReason.STOP if limit == len(token_ids) else FinishReason.LENGTH
