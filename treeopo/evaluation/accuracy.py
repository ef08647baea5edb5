"""pass@1 of whatever an engine serves: greedy, and by sampling at temperature 1."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from treeopo.errors import ProblemError
from treeopo.ports import Generate, Grade
from treeopo.records import Completion, FinishReason, Problem, Request
from treeopo.seeds import derive_seed
from treeopo.tasks import gather_or_cancel

IN_FLIGHT = 512
"""Requests given to the engine at once; it batches them as it can, and finished ones leave memory."""


@dataclass(frozen=True, slots=True)
class Graded:
    """One completion of a problem: sample 0 is greedy, the others are drawn at temperature 1."""

    problem_id: str
    sample: int
    text: str
    reward: float
    truncated: bool


@dataclass(frozen=True, slots=True)
class Scores:
    """Rewards of M problems: greedy (M,), sampled (M, S)."""

    problem_ids: tuple[str, ...]
    greedy: npt.NDArray[np.float64]
    sampled: npt.NDArray[np.float64]
    truncated: int

    @property
    def pass_at_1(self) -> float:
        return float(self.greedy.mean())


async def evaluate(
    problems: Sequence[Problem],
    prompt_ids: Sequence[Sequence[int]],
    generate: Generate,
    grade: Grade,
    *,
    max_new_tokens: int,
    samples: int,
    seed: int,
    on_completion: Callable[[Graded], None],
) -> Scores:
    """Complete every problem greedily and `samples` times at temperature 1, and grade it; cut completions are wrong.

    Raises:
        ProblemError: there is no problem.
        EngineError: the engine refused a request.
    """
    if not problems:
        raise ProblemError("there is no problem to evaluate on; check the problem set and the limit")
    room = asyncio.Semaphore(IN_FLIGHT)
    rewards = np.zeros((len(problems), 1 + samples))
    truncated = 0

    async def one(index: int, sample: int) -> None:
        nonlocal truncated
        temperature = 0.0 if sample == 0 else 1.0
        async with room:
            completion = await generate.generate(
                Request(
                    prompt_ids[index], max_new_tokens, seed=derive_seed(seed, index, sample), temperature=temperature
                )
            )
        graded = await _graded(problems[index], sample, completion, grade)
        rewards[index, sample] = graded.reward
        truncated += graded.truncated
        on_completion(graded)

    await gather_or_cancel(one(index, sample) for index in range(len(problems)) for sample in range(1 + samples))
    ids = tuple(problem.id for problem in problems)
    return Scores(ids, rewards[:, 0], rewards[:, 1:], truncated)


async def _graded(problem: Problem, sample: int, completion: Completion, grade: Grade) -> Graded:
    cut = completion.finish_reason is FinishReason.LENGTH
    return Graded(problem.id, sample, completion.text, 0.0 if cut else await grade(problem, completion.text), cut)
