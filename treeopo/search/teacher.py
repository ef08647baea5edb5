"""What the search asks of the teacher: to go on from a node, and where the steps of its reply end."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from treeopo.errors import EngineError
from treeopo.ports import Generate, Tokenize
from treeopo.records import FinishReason, FloatArray, IntArray, Problem, Request
from treeopo.search.settings import SearchSettings
from treeopo.search.steps import StepSplitter
from treeopo.seeds import derive_seed


class Reply(NamedTuple):
    """What the teacher said, up to its final answer; `room`: tokens its solution had left when it was asked."""

    token_ids: IntArray  # (T,)
    logprobs: FloatArray  # (T,) NaN where not of the teacher's own distribution
    ends: list[int]  # of steps after which the solution may go on
    reason: FinishReason
    room: int


@dataclass(slots=True)
class Teacher:
    """The teacher of one search. Request n carries a seed made from (seed, n), n counted as requests are prepared."""

    problem: Problem
    prompt_length: int
    generate: Generate
    tokenize: Tokenize
    splitter: StepSplitter
    settings: SearchSettings
    seed: int
    requests: int = 0

    def next_seed(self) -> int:
        self.requests += 1
        return derive_seed(self.seed, self.requests - 1)

    async def ask(self, prefix_ids: list[int], seed: int, *, one_step: bool) -> Reply:
        """Go on from a prefix by one step or by all that remains, and no further than its solution may go.

        Raises:
            EngineError: the engine refused or failed the request, or returned nothing.
        """
        settings = self.settings
        room = settings.max_solution_tokens - (len(prefix_ids) - self.prompt_length)
        limit = min(settings.max_step_tokens, room) if one_step else room
        stop = (settings.separator,) if one_step else ()
        request = Request(prefix_ids, limit, seed, settings.temperature, stop)
        completion = await self.generate.generate(request)
        if not len(completion.token_ids):
            raise EngineError(f"the engine returned no token for a step of problem {self.problem.id!r}")
        ends, end, answered = self.splitter.split(completion.token_ids.tolist())
        logprobs = completion.logprobs[:end]
        if settings.temperature != 1:
            logprobs = np.full_like(logprobs, np.nan)
        reason = FinishReason.STOP if answered else completion.finish_reason
        return Reply(completion.token_ids[:end], logprobs, ends, reason, room)


Answer = Callable[[str], str]
"""The final answer in a finished solution, in a form in which equal answers are equal; empty where there is none."""
