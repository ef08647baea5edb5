"""What the search asks of the teacher: to go on from a node, and where the steps of its reply end."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from treeopo.errors import EngineError
from treeopo.ports import Generate, Tokenize
from treeopo.records import Completion, FinishReason, FloatArray, IntArray, Problem, Request
from treeopo.search.actions import ActionPrompts, PromptedAction
from treeopo.search.settings import SearchSettings
from treeopo.search.steps import StepSplitter
from treeopo.search.tree import decode_text, without_end
from treeopo.seeds import derive_seed

_BLANKS = 4
"""How often a teacher that writes blank lines alone is asked to go on before they count as a step."""


class Reply(NamedTuple):
    """The teacher's completion up to its final answer; `room`: tokens its solution had left when it was asked."""

    token_ids: IntArray  # (T,)
    logprobs: FloatArray  # (T,) NaN where not of the teacher's own distribution
    ends: list[int]  # of steps after which the solution may go on
    reason: FinishReason
    room: int


@dataclass(slots=True)
class SearchTeacher:
    """The teacher of one search. Request n carries a seed made from (seed, n), n counted as requests are prepared."""

    problem: Problem
    prompt_length: int
    generate: Generate
    tokenize: Tokenize
    splitter: StepSplitter
    settings: SearchSettings
    prompts: ActionPrompts
    seed: int
    requests: int = 0

    def next_seed(self) -> int:
        self.requests += 1
        return derive_seed(self.seed, self.requests - 1)

    async def ask(self, prefix_ids: list[int], seed: int, *, one_step: bool) -> Reply:
        """Go on from a prefix by one step or by all that remains, and no further than its solution may go.

        A step that begins with blank lines is asked for in as many requests: each one ends at a separator.

        Raises:
            EngineError: the engine refused or failed the request, or returned nothing.
        """
        settings = self.settings
        room = settings.max_solution_tokens - (len(prefix_ids) - self.prompt_length)
        limit = min(settings.max_step_tokens, room) if one_step else room
        stop = (settings.separator,) if one_step else ()
        completion = await self._complete(Request(prefix_ids, limit, seed, settings.temperature, stop))
        for blank in range(_BLANKS if one_step else 0):
            if completion.finish_reason.is_cut or len(completion.token_ids) >= limit or not self._is_blank(completion):
                break
            begun = completion.token_ids.tolist()
            own = derive_seed(seed, blank)
            request = Request([*prefix_ids, *begun], limit - len(begun), own, settings.temperature, stop)
            completion = _joined(completion, await self._complete(request))
        ends, end, answered = self.splitter.split(completion.token_ids.tolist())
        logprobs = completion.logprobs[:end]
        if settings.temperature != 1:
            logprobs = np.full_like(logprobs, np.nan)
        reason = FinishReason.STOP if answered else completion.finish_reason
        return Reply(completion.token_ids[:end], logprobs, ends, reason, room)

    async def _complete(self, request: Request) -> Completion:
        completion = await self.generate.generate(request)
        if not len(completion.token_ids):
            raise EngineError(f"the engine returned no token for a step of problem {self.problem.id!r}")
        return completion

    def _is_blank(self, completion: Completion) -> bool:
        """Whether a completion stopped at a separator before it said anything."""
        ids = completion.token_ids.tolist()
        return ids[-1] not in self.tokenize.end_token_ids and self.splitter.is_blank(self.tokenize.decode(ids))

    async def ask_with_action_prompt(
        self, action: PromptedAction, prefix_ids: list[int], shown_ids: list[int], seed: int
    ) -> Reply | None:
        """One step below a prefix, asked for under the prompt of A3, A4 or A5 that shows the steps of `shown_ids`.

        None if no whole step came back: no text, no end within the tokens allowed, or steps so far that leave the
        prompt no room. Its log-probabilities are unknown: under the plain prompt nobody has asked for it.

        Raises:
            EngineError: the engine refused or failed the request.
        """
        question, settings = self.problem.question, self.settings
        room = settings.max_solution_tokens - (len(prefix_ids) - self.prompt_length)
        prompt_ids = self.prompts.prompt(action, question, self._text(shown_ids[self.prompt_length :]))
        shown = len(prompt_ids) - len(self.prompts.prompt(action, question, ""))
        limit = min(settings.max_step_tokens, room, settings.max_solution_tokens - shown)
        if limit < 1:
            return None
        request = Request(prompt_ids, limit, seed, settings.temperature, (settings.separator,))
        return self._one_step(await self.generate.generate(request), room)

    def _one_step(self, completion: Completion, room: int) -> Reply | None:
        """The first step of a completion in the completion's own tokens; where it ended without the separator, that
        comes in place of the token at which the teacher stopped.
        """
        step_ids, separator = completion.token_ids.tolist(), self.settings.separator
        ends, end, answered = self.splitter.split(step_ids)
        mark = self.settings.answer_mark
        if ends:
            step_ids, answered = step_ids[: ends[0]], False
        elif answered:
            step_ids = step_ids[:end]
        elif completion.finish_reason.is_cut:
            return None
        elif not (answered := bool(mark) and mark in self._text(step_ids)):
            missing = _missing(self._text(step_ids), separator)
            step_ids = without_end(step_ids, self.tokenize) + list(self.tokenize.encode(missing))
        if len(step_ids) > room or not self._text(step_ids).partition(separator)[0].strip():
            return None
        unknown = np.full(len(step_ids), np.nan, np.float32)
        reply_ends = [] if answered else [len(step_ids)]
        return Reply(np.array(step_ids, np.int32), unknown, reply_ends, FinishReason.STOP, room)

    def _text(self, token_ids: list[int]) -> str:
        return decode_text(token_ids, self.tokenize)


def _joined(first: Completion, second: Completion) -> Completion:
    """A completion and what goes on after it."""
    return Completion(
        token_ids=np.concatenate([first.token_ids, second.token_ids]),
        logprobs=np.concatenate([first.logprobs, second.logprobs]),
        versions=np.concatenate([first.versions, second.versions]),
        text=first.text + second.text,
        finish_reason=second.finish_reason,
    )


def _missing(text: str, separator: str) -> str:
    """What `text`, which may end in a part of the separator, lacks of it."""
    return next(separator[held:] for held in range(len(separator), -1, -1) if text.endswith(separator[:held]))


Answer = Callable[[str], Awaitable[str]]
"""The final answer in a finished solution, in a form in which equal answers are equal; empty where there is none."""
