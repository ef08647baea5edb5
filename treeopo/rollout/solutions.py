"""Batches of worked solutions, for supervised fine-tuning: a store's solved traces, or any (prompt, solution) pairs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from treeopo.records import IntArray, TrainBatch, TrainSequence
from treeopo.rollout.epochs import Epochs
from treeopo.rollout.settings import RolloutSettings
from treeopo.rollout.traces import Traces


@dataclass(frozen=True, slots=True)
class Solution:
    """A prompt and what should follow it, as token ids; the solution ends in a token that ends an answer."""

    prompt_ids: IntArray
    solution_ids: IntArray


class SolvedTraces(Sequence[Solution]):
    """Traces as solutions; one that the teacher went on after (its answer ended it) is closed by the first of `ends`,
    the tokens that an answer may end in.
    """

    def __init__(self, traces: Traces, ends: Sequence[int]) -> None:
        self._traces = traces
        self._ends = ends

    def __len__(self) -> int:
        return len(self._traces)

    def __getitem__(self, index: int) -> Solution:  # type: ignore[override]
        tree, path = self._traces.trace(index)
        ids, prompt = tree.prefix_tokens(path[-1]), int(tree.token_offsets[1])
        closed = ids if ids[-1] in self._ends else np.append(ids, np.int32(self._ends[0]))
        return Solution(closed[:prompt], closed[prompt:])


class SolutionBatches:
    """Batch b of supervised training, every solution once an epoch; all tokens of a batch weigh the same."""

    def __init__(self, solutions: Sequence[Solution], settings: RolloutSettings, seed: int) -> None:
        self._solutions = solutions
        self._epochs = Epochs(len(solutions), settings.batch_size, seed)

    async def batch(self, number: int) -> TrainBatch:
        rows = [self._solutions[index] for index in self._epochs.batch(number)]
        tokens = sum(len(row.solution_ids) for row in rows)
        metrics = {"learner/solution_tokens": float(tokens)}
        return TrainBatch(number, tuple(_sequence(row, number) for row in rows), metrics)


def _sequence(row: Solution, number: int) -> TrainSequence:
    completion = len(row.solution_ids)
    return TrainSequence(
        token_ids=np.concatenate([row.prompt_ids, row.solution_ids]).astype(np.int32),
        prefix_length=len(row.prompt_ids),
        advantages=np.ones(completion, np.float32),
        behaviour_logprobs=np.zeros(completion, np.float32),
        versions=np.full(completion, number, np.int32),
    )
