"""A tracker of your own: treeopo train --track examples.tracker:RewardTable

It writes RUN/rewards.csv, a line a step. docs/metrics.md names what a step's `metrics` may hold.
"""

from collections.abc import Mapping

from treeopo.trackers import RunInfo


class RewardTable:
    def __init__(self, run: RunInfo) -> None:
        self._file = (run.path / "rewards.csv").open("a", encoding="utf-8")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        if "rollout/reward" in metrics:
            print(step, metrics["rollout/reward"], sep=",", file=self._file, flush=True)

    def close(self) -> None:
        self._file.close()
