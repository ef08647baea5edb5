"""Completions of a problem set by whatever an engine serves, graded: one greedy, the others at temperature 1."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from treeopo.errors import ProblemError
from treeopo.evaluation.intervals import is_binary
from treeopo.ports import Generate, Grade
from treeopo.records import Problem, Request
from treeopo.seeds import derive_seed
from treeopo.tasks import gather_or_cancel

IN_FLIGHT = 512
"""Requests given to the engine at once; it batches them as it can, and finished ones leave memory."""


@dataclass(frozen=True, slots=True)
class Graded:
    """One completion of a problem: sample 0 is greedy, the others are drawn at temperature 1. `answer` is its final
    answer in the problem set's canonical form, empty where it gives none; a truncated one is wrong, whatever it says,
    unless such are graded too.
    """

    problem_id: str
    sample: int
    text: str
    answer: str
    reward: float
    truncated: bool
    tokens: int


@dataclass(frozen=True, slots=True)
class EvalProgress:
    """How far an evaluation is: completions of all models and sets, `done` of `total`, and what this process made of
    them: how many and the sum of their rewards, tokens sampled (of unfinished ones too), seconds of its engines.
    """

    done: int
    total: int
    new: int = 0
    tokens: int = 0
    reward: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Question:
    """A problem and the tokens that ask it; a completion also ends at any of the `stop` strings."""

    problem: Problem
    prompt_ids: Sequence[int]
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Scores:
    """Rewards and final answers of M problems: greedy (M,), sampled (M, S), answers (M, S) of the sampled ones.

    `grader` holds what grading them cost: `grader/timeouts`, `grader/restarts`, `grader/errors`, and
    `grader/unreadable_golds`.
    """

    problem_ids: tuple[str, ...]
    greedy: npt.NDArray[np.float64]
    sampled: npt.NDArray[np.float64]
    answers: tuple[tuple[str, ...], ...]
    truncated: int
    grader: Mapping[str, float] = field(default_factory=dict)

    @property
    def pass_at_1(self) -> float:
        """Mean greedy reward: the share of right answers where rewards are 0 or 1."""
        return float(self.greedy.mean())

    @property
    def is_binary(self) -> bool:
        """Whether every reward is 0 or 1."""
        return is_binary(self.greedy) and is_binary(self.sampled)


async def complete_and_grade(
    questions: Sequence[Question],
    generate: Generate,
    grade: Grade,
    answer: Callable[[str], Awaitable[str]],
    *,
    max_new_tokens: int,
    samples: int,
    seed: int,
    grade_cut: bool = False,
    on_completion: Callable[[Graded], None] = lambda graded: None,
    done: Mapping[tuple[str, int], Graded] | None = None,
) -> Scores:
    """Complete every problem greedily and `samples` times at temperature 1, grade it and read its final answer.

    Sample s of problem m depends on (seed, m, s) and the model alone. `done` holds completions of an earlier, stopped
    evaluation by (problem id, sample): they are taken as they are and not reported again.

    Raises:
        ProblemError: there is no problem, or two of them share an id.
        EngineError: the engine refused a request.
        GraderError: the grader fails again and again.
    """
    ids = _distinct_ids(questions)
    room = asyncio.Semaphore(IN_FLIGHT)

    async def one(index: int, sample: int) -> Graded:
        question = questions[index]
        earlier = (done or {}).get((question.problem.id, sample))
        if earlier:
            return earlier
        request = Request(
            token_ids=question.prompt_ids,
            max_tokens=max_new_tokens,
            seed=derive_seed(seed, index, sample),
            temperature=0.0 if sample == 0 else 1.0,
            stop=question.stop,
        )
        async with room:
            completion = await generate.generate(request)
        cut = completion.finish_reason.is_cut
        is_read = grade_cut or not cut
        reward = await grade(question.problem, completion.text) if is_read else 0.0
        graded = Graded(
            question.problem.id,
            sample,
            completion.text,
            await answer(completion.text) if is_read else "",
            reward,
            cut,
            len(completion.token_ids),
        )
        on_completion(graded)
        return graded

    width = 1 + samples
    rows = await gather_or_cancel(one(index, sample) for index in range(len(questions)) for sample in range(width))
    rewards = np.array([row.reward for row in rows]).reshape(-1, width)
    answers = tuple(tuple(row.answer for row in rows[m * width + 1 : (m + 1) * width]) for m in range(len(questions)))
    return Scores(ids, rewards[:, 0], rewards[:, 1:], answers, sum(row.truncated for row in rows))


def _distinct_ids(questions: Sequence[Question]) -> tuple[str, ...]:
    if not questions:
        raise ProblemError("there is no problem to evaluate on; check the problem set and the limit")
    ids = tuple(question.problem.id for question in questions)
    if len(set(ids)) < len(ids):
        twice = next(name for index, name in enumerate(ids) if name in ids[:index])
        raise ProblemError(f"problem id {twice!r} occurs twice; ids must tell problems apart")
    return ids
