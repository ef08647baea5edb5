"""What the student did from each prefix so far, as each batch may know it.

Batch b may start once version b - eta serves: once the batches up to b - eta - 1 have been learned from. So it knows
the outcomes of those and no others, whatever the speeds, and a resumed run draws what the killed one would have drawn.

    record(b) ─▶ the newest batches ─▶ counts ─▶ known(b + eta + 1)
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from treeopo_storage.protocol import Structure

from treeopo.errors import RunError, described
from treeopo.records import Outcomes, RolloutGroup
from treeopo.rollout.sampling.known import Known
from treeopo.rollout.settings import RolloutSettings
from treeopo.tree import RunningCounts, estimated_success

State = Mapping[str, npt.NDArray[Any]]
_Batch = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]
"""Start nodes (n,) of a batch's rollouts, as rows of the store, and their rewards."""
MEMORY_FILE = "memory.npz"
_NOTHING: _Batch = np.empty(0, np.int64), np.empty(0, np.float64)


class OutcomeMemory:
    """Outcomes by start node of the P prefixes of a store, batch by batch; `steps` is the length of the run.

    `known(b)` is asked once for each batch, in their order. The counts end where everything to come, resumed runs
    included, may know them; the at most 2 eta + 1 batches behind that are kept one by one.
    """

    def __init__(self, structure: Structure, settings: RolloutSettings, steps: int) -> None:
        self._structure = structure
        self._lag = settings.max_staleness + 1
        self._strength = settings.memory.strength
        self._steps = steps
        self._counts = RunningCounts(len(structure.parent), settings.memory.retention)
        self._through = -1  # the last batch in the counts
        self._newest: dict[int, _Batch] = {}

    def record(self, batch: int, groups: Sequence[RolloutGroup]) -> None:
        """All outcomes of a batch, of rollouts that it does not learn from too."""
        done = [(group.drawn.problem, rollout) for group in groups for rollout in (*group.rollouts, *group.extra)]
        rows = [self._structure.first_node[problem] + rollout.prompt.node for problem, rollout in done]
        self._newest[batch] = np.array(rows, np.int64), np.array([rollout.reward for _, rollout in done], np.float64)

    def known(self, batch: int) -> Known:
        """What `batch` may know; it must be read before a later batch is asked for."""
        last = batch - self._lag
        missing = [each for each in range(self._through + 1, last + 1) if each not in self._newest]
        assert not missing, f"batch {batch} is drawn before the outcomes of batches {missing} are there"
        while self._through <= last - self._lag:  # the batch that a run is resumed from now may know no more
            self._through += 1
            _add(self._counts, self._newest.pop(self._through))
        return Known(batch / self._steps, partial(self._upto, last), self._estimate)

    def snapshot(self, version: int) -> Callable[[Path], None]:
        """What writes the memory, as a run that is resumed from `version` needs it, into a checkpoint's directory."""
        state = self.state(version)
        return lambda directory: np.savez_compressed(directory / MEMORY_FILE, allow_pickle=False, **state)

    def resume(self, checkpoint: Path | None, version: int) -> None:
        """Go on at `version` with the memory of a checkpoint; one of version 0.1 has none, nor has a new run.

        Raises:
            RunError: it is of another store, or cannot be read.
        """
        if checkpoint is None or not (checkpoint / MEMORY_FILE).exists():
            self.restore(None, version)
            return
        try:
            with np.load(BytesIO((checkpoint / MEMORY_FILE).read_bytes())) as state:
                self.restore(dict(state), version)
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise RunError(
                f"{checkpoint / MEMORY_FILE}: cannot be read ({described(error)}); delete {checkpoint.name} to go on "
                "from the checkpoint before"
            ) from None

    def state(self, version: int) -> dict[str, npt.NDArray[Any]]:
        """What a run that is resumed from `version` needs."""
        counts = self._counts.state()
        seen = np.flatnonzero(counts["total"])
        newest = {batch: self._newest[batch] for batch in sorted(self._newest) if batch < version}
        return {
            **counts,
            "total": counts["total"][seen],
            "success": counts["success"][seen],
            "seen": seen,
            "nodes": np.array(len(counts["total"])),
            "through": np.array(self._through),
            "batch": np.repeat(list(newest), [len(rows) for rows, _ in newest.values()]).astype(np.int64),
            "row": np.concatenate([_NOTHING[0], *(rows for rows, _ in newest.values())]),
            "reward": np.concatenate([_NOTHING[1], *(rewards for _, rewards in newest.values())]),
        }

    def restore(self, state: State | None, version: int) -> None:
        """Go on at `version` from what `state(version)` returned; None: from a run that had no memory yet.

        Raises:
            RunError: it is of another store.
        """
        if state is None:
            self._through = version - self._lag
            self._newest = dict.fromkeys(range(self._through + 1, version), _NOTHING)
            return
        nodes = int(state["nodes"])
        if nodes != len(self._structure.parent):
            raise RunError(
                f"the run's memory is of a store of {nodes} prefixes and this one has {len(self._structure.parent)}; "
                "resume it with the store that it began with"
            )
        counts = {"weight": state["weight"], "retention": state["retention"]}
        for name in ("total", "success"):
            counts[name] = np.zeros(nodes)
            counts[name][state["seen"]] = state[name]
        self._counts = RunningCounts.from_state(counts)
        self._through = int(state["through"])
        for batch in range(self._through + 1, version):
            of_it = state["batch"] == batch
            self._newest[batch] = state["row"][of_it], state["reward"][of_it]

    def _upto(self, last: int) -> Outcomes:
        assert self._through <= max(last, -1), "read after a later batch was asked for"
        counts = self._counts.copy()
        for batch in range(self._through + 1, last + 1):
            _add(counts, self._newest[batch])
        return counts.outcomes()

    def _estimate(self, outcomes: Outcomes) -> npt.NDArray[np.float64]:
        return estimated_success(self._structure.parent_row, self._structure.depth, outcomes, self._strength)


def _add(counts: RunningCounts, batch: _Batch) -> None:
    counts.record(*batch)
    counts.advance()
