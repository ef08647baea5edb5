"""Batches of stored traces whose steps carry their gain in search value V(s') - V(s): the data of method `dvo`."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from treeopo_storage.schema import ProblemTree

from treeopo.records import FloatArray, TokenColumn, TrainBatch, TrainSequence
from treeopo.rollout.epochs import Epochs
from treeopo.rollout.settings import RolloutSettings
from treeopo.rollout.traces import Traces

Reference = Callable[[Sequence[TrainSequence]], Awaitable[list[FloatArray]]]


class ValuedStepBatches:
    """Batch b of traces, every trace once an epoch. `reference` gives log-probabilities under the base model; it is
    called once for each trace and the results are kept, 4 bytes a token.
    """

    def __init__(self, traces: Traces, reference: Reference, settings: RolloutSettings, seed: int) -> None:
        self._traces = traces
        self._reference = reference
        self._epochs = Epochs(len(traces), settings.batch_size, seed)
        self._known: dict[int, FloatArray] = {}

    async def batch(self, number: int) -> TrainBatch:
        indices = self._epochs.batch(number)
        rows = {index: valued_sequence(*self._traces.trace(index), number) for index in indices}
        missing = [index for index in rows if index not in self._known]
        found = await self._reference([rows[index] for index in missing]) if missing else []
        self._known.update(zip(missing, found, strict=True))
        gains = np.concatenate(
            [row.extras[TokenColumn.GAIN][row.extras[TokenColumn.STEP_START] == 1] for row in rows.values()]
        )
        whole = {
            index: replace(row, extras={**row.extras, TokenColumn.REFERENCE: self._known[index]})
            for index, row in rows.items()
        }
        metrics = {"advantage/gain_mean": float(gains.mean()), "advantage/gain_std": float(gains.std())}
        return TrainBatch(number, tuple(whole[index] for index in indices), metrics)


def node_values(tree: ProblemTree) -> npt.NDArray[np.float64]:
    """V of each node (P,): the mean return of the search's rollouts through it; of a terminal node its reward."""
    mean = tree.value_sum / np.maximum(tree.visits, 1)
    return np.where(tree.terminal, tree.reward, mean)


def valued_sequence(tree: ProblemTree, path: Sequence[int], number: int) -> TrainSequence:
    """The trace along `path` as one sequence: the prompt is its prefix, and each later node a step with its gain."""
    values = node_values(tree)
    lengths = np.diff(tree.token_offsets)[list(path[1:])]
    gains = np.diff(values[list(path)]).astype(np.float32)
    starts = np.zeros(int(lengths.sum()), np.float32)
    starts[np.concatenate([[0], np.cumsum(lengths)[:-1]])] = 1
    return TrainSequence(
        token_ids=tree.prefix_tokens(path[-1]),
        prefix_length=int(tree.token_offsets[1]),
        advantages=np.ones(len(starts), np.float32),
        behaviour_logprobs=np.zeros(len(starts), np.float32),
        versions=np.full(len(starts), number, np.int32),
        extras={TokenColumn.STEP_START: starts, TokenColumn.GAIN: np.repeat(gains, lengths)},
    )
