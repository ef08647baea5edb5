"""The rollouts of a run on disk: what each step learned from, as Parquet for pandas, datasets or any other reader.

RUN/rollouts/step-000017.parquet     a row a rollout of step 17; whole or absent
RUN/rollouts/.step-000018.partial    being written: pandas and datasets pass over it, and the next start removes it

    batch b assembled ─ take ─▶ ┌ a thread of its own ──────────────┐
    step b + 1 taken ─ commit ▶ │ rows to Parquet in memory ─▶ file │
                                └───────────────────────────────────┘
"""

import asyncio
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import numpy as np
import numpy.typing as npt

from treeopo.errors import described
from treeopo.records import FloatArray, RolloutGroup, TrainBatch

_log = logging.getLogger(__name__)
_NAME = re.compile(r"step-(\d{6,})\.parquet")


class KeptRollouts:
    """The rollouts of the `newest` steps (None: of all) in `directory`; whoever calls only hands over references.

    A batch becomes rows once it is taken, and a file once its step is committed: the files are of the steps that count.
    On opening, those of steps after `resume_at` go, and what a killed process left half written. problem_id: of a
    problem by its number in the store. decode: a prompt's tokens as text. Both are called in the thread.

    What fails (a full disk) ends the recording with one warning, and the run goes on.
    """

    def __init__(
        self,
        directory: Path,
        newest: int | None,
        resume_at: int,
        problem_id: Callable[[int], str],
        decode: Callable[[list[int]], str],
    ) -> None:
        self._directory = directory
        self._newest = newest
        self._problem_id = cache(problem_id)
        self._decode = decode
        self._taken: dict[int, Any] = {}
        self._dropped = False
        self._left: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._guarded(self._open, resume_at)
        self._thread = Thread(target=self._work, name="rollouts on disk", daemon=True)
        self._thread.start()

    def take(self, groups: Sequence[RolloutGroup], batch: TrainBatch) -> None:
        """The rollouts of `groups`, in their order, which `batch.sequences` are made of."""
        self._left.put(partial(self._guarded, self._convert, groups, batch))

    def commit(self, step: int) -> None:
        """Step `step` has been taken, of batch step - 1: what was taken of that batch is kept."""
        self._left.put(partial(self._guarded, self._write, step))

    async def written(self) -> None:
        """Wait until what was committed is on disk, as a checkpoint does that stands for these steps."""
        done = asyncio.Event()
        self._left.put(partial(asyncio.get_running_loop().call_soon_threadsafe, done.set))
        await done.wait()

    def close(self) -> None:
        """Write what is committed, and end the thread."""
        self._left.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (work := self._left.get()) is not None:
            work()

    def _guarded(self, work: Callable[..., None], *arguments: Any) -> None:
        if self._dropped:
            return
        try:
            work(*arguments)
        except Exception as error:  # noqa: BLE001  a disk, a store or a decoder: none of them is worth a run
            self._dropped = True
            self._taken.clear()
            _log.warning(
                "rollouts are no longer kept in %s (%s); the run goes on, metrics.jsonl has its figures",
                self._directory,
                described(error),
            )

    def _open(self, resume_at: int) -> None:
        import pyarrow as pa  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]

        pa.array([0])  # the first one imports pandas, if it is there: not under the first steps
        self._directory.mkdir(parents=True, exist_ok=True)
        for left in self._directory.glob(".step-*.partial"):
            left.unlink()
        for step, part in list(self._parts()):
            if step > resume_at or (self._newest is not None and step <= resume_at - self._newest):
                part.unlink()

    def _convert(self, groups: Sequence[RolloutGroup], batch: TrainBatch) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = rollout_columns(groups, batch, self._problem_id, self._decode)
        file = pa.BufferOutputStream()
        pq.write_table(pa.table(columns), file, compression="zstd")
        self._taken[batch.number] = file.getvalue()

    def _write(self, step: int) -> None:
        partial = self._directory / f".step-{step:06d}.partial"
        try:
            with partial.open("wb") as file:
                file.write(self._taken.pop(step - 1))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self._part(step))
        finally:
            partial.unlink(missing_ok=True)
        if self._newest is not None:
            self._part(step - self._newest).unlink(missing_ok=True)

    def _part(self, step: int) -> Path:
        return self._directory / f"step-{step:06d}.parquet"

    def _parts(self) -> Iterator[tuple[int, Path]]:
        for path in self._directory.iterdir():
            if match := _NAME.fullmatch(path.name):
                yield int(match[1]), path


def rollout_columns(
    groups: Sequence[RolloutGroup],
    batch: TrainBatch,
    problem_id: Callable[[int], str],
    decode: Callable[[list[int]], str],
) -> dict[str, Any]:
    """The pyarrow columns of a part, a row a rollout; docs/metrics.md says what each holds."""
    import pyarrow as pa

    drawn = [group.drawn for group in groups for _ in group.rollouts]
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    assert len(rollouts) == len(batch.sequences), "a sequence of the batch for each rollout"
    prompts = [rollout.prompt for rollout in rollouts]
    completions = [rollout.completion for rollout in rollouts]
    values = [None] * len(rollouts) if batch.values is None else batch.values.tolist()
    return {
        "step": pa.array([batch.number + 1] * len(rollouts), pa.int32()),
        "group": pa.array([each.number for each in drawn], pa.int64()),
        "problem": pa.array([problem_id(each.problem) for each in drawn], pa.string()),
        "node": pa.array([prompt.node for prompt in prompts], pa.int32()),
        "depth": pa.array([prompt.depth for prompt in prompts], pa.int32()),
        "prompt": pa.array([decode(np.asarray(prompt.token_ids).tolist()) for prompt in prompts], pa.string()),
        "completion": pa.array([completion.text for completion in completions], pa.string()),
        "prompt_ids": _lists([prompt.token_ids for prompt in prompts], np.int32),
        "token_ids": _lists([completion.token_ids for completion in completions], np.int32),
        "logprobs": _lists([completion.logprobs for completion in completions], np.float32),
        "versions": _lists([completion.versions for completion in completions], np.int32),
        "reward": pa.array([rollout.reward for rollout in rollouts], pa.float64()),
        "value": pa.array(values, pa.float64(), from_pandas=True),  # not a number: none
        "advantage": _common([row.advantages for row in batch.sequences]),
        "finish_reason": pa.array([str(completion.finish_reason) for completion in completions], pa.string()),
        "seed": pa.array([rollout.seed for rollout in rollouts], pa.int64()),
    }


def _lists(rows: Sequence[npt.NDArray[Any]], kind: npt.DTypeLike) -> Any:
    """A column of lists, without a Python object per element."""
    import pyarrow as pa

    ends = np.cumsum([0, *map(len, rows)], dtype=np.int32)
    return pa.ListArray.from_arrays(ends, pa.array(np.concatenate(rows, dtype=kind)))


def _common(rows: Sequence[FloatArray]) -> Any:
    """A column of what all numbers of a row are: null where they differ, or there are none."""
    import pyarrow as pa

    lengths = np.array([len(row) for row in rows])
    flat, row_of, some = np.concatenate(rows), np.repeat(np.arange(len(rows)), lengths), lengths > 0
    first = np.zeros(len(rows), np.float32)
    first[some] = flat[(np.cumsum(lengths) - lengths)[some]]
    differing = np.bincount(row_of[flat != first[row_of]], minlength=len(rows))
    return pa.array(first, mask=(differing > 0) | ~some)
