"""Evaluations beside training are of the version they claim, and the best policy is kept with its figures."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from treeopo.errors import ConfigError, EngineDeadError
from treeopo.evaluation.accuracy import Scores
from treeopo.evaluation.periodic import PeriodicEvaluation, read_best
from treeopo.evaluation.settings import PeriodicSettings


class Recording:
    """A tracker that keeps what it is given."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self.rows.append((step, dict(metrics)))

    def close(self) -> None:
        pass


class Policy:
    """A policy whose accuracy is scripted by version; its adapter is a file that names the version."""

    def __init__(self, accuracy: Mapping[int, float], best: Path, *, every: int = 2, last: int = 100) -> None:
        self.version = 0
        self.tracker = Recording()
        self.gate = asyncio.Event()
        self.gate.set()
        self._accuracy = accuracy
        self.evaluation = PeriodicEvaluation(self._score, self._save, self.tracker, best, every, last)

    async def _score(self) -> Scores:
        right = round(10 * self._accuracy[self.version])
        await self.gate.wait()
        return Scores(("p",) * 10, np.repeat([1.0, 0.0], [right, 10 - right]), np.zeros((10, 0)), ((),) * 10, 1)

    async def _save(self, directory: Path) -> None:
        directory.mkdir()
        (directory / "adapter").write_text(str(self.version))

    async def serve(self, version: int) -> None:
        await self.evaluation.settled()
        self.version = version
        await self.evaluation.start(version)
        await asyncio.sleep(0)


async def test_versions_are_evaluated_at_the_interval_and_at_the_end(tmp_path: Path) -> None:
    policy = Policy(dict.fromkeys(range(8), 0.5), tmp_path / "best", every=3, last=7)
    for version in range(8):
        await policy.serve(version)
    await policy.evaluation.settled()
    assert [step for step, _ in policy.tracker.rows] == [0, 3, 6, 7]
    assert policy.tracker.rows[0][1]["eval/truncated_share"] == 0.1


async def test_the_best_version_s_adapter_is_kept_with_its_figures(tmp_path: Path) -> None:
    policy = Policy({0: 0.2, 2: 0.9, 4: 0.9, 6: 0.4}, tmp_path / "best")
    for version in (0, 2, 4, 6):
        await policy.serve(version)
    await policy.evaluation.settled()
    assert (tmp_path / "best" / "adapter").read_text() == "2"  # the first of equals
    record = read_best(tmp_path / "best")
    assert record is not None
    assert (record["version"], record["eval/pass_at_1"]) == (2, 0.9)
    assert record["eval/pass_at_1_low"] < 0.9 < record["eval/pass_at_1_high"]
    assert [path.name for path in tmp_path.iterdir()] == ["best"]  # no candidate left


async def test_a_resumed_run_knows_the_best_so_far(tmp_path: Path) -> None:
    before = Policy({0: 0.8}, tmp_path / "best")
    await before.serve(0)
    await before.evaluation.settled()
    resumed = Policy({2: 0.5}, tmp_path / "best")
    await resumed.serve(2)
    await resumed.evaluation.settled()
    assert (tmp_path / "best" / "adapter").read_text() == "0"


async def test_the_next_publication_waits_for_the_evaluation_of_the_version_that_serves(tmp_path: Path) -> None:
    policy = Policy({0: 0.5, 1: 0.5}, tmp_path / "best")
    policy.gate.clear()
    await policy.serve(0)
    publication = asyncio.create_task(policy.serve(1))
    await asyncio.sleep(0.01)
    assert policy.version == 0
    policy.gate.set()
    await publication
    assert policy.version == 1
    assert [step for step, _ in policy.tracker.rows] == [0]


async def test_a_failed_evaluation_is_raised_where_it_is_waited_for(tmp_path: Path) -> None:
    async def dead() -> Scores:
        raise EngineDeadError("the engine died")

    async def save(directory: Path) -> None:
        directory.mkdir()

    evaluation = PeriodicEvaluation(dead, save, Recording(), tmp_path / "best", every=1, last=9)
    await evaluation.start(0)
    with pytest.raises(EngineDeadError, match="the engine died"):
        await evaluation.settled()
    assert read_best(tmp_path / "best") is None


async def test_a_cancelled_evaluation_leaves_no_task(tmp_path: Path) -> None:
    policy = Policy({0: 0.5}, tmp_path / "best")
    policy.gate.clear()
    await policy.serve(0)
    await policy.evaluation.cancel()
    assert len(asyncio.all_tasks()) == 1
    assert policy.tracker.rows == []


@pytest.mark.parametrize("settings", [{"every": 0}, {"limit": 0}])
def test_impossible_settings_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="must be at least 1"):
        PeriodicSettings(**settings)  # type: ignore[arg-type]
