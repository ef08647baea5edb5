"""Many searches at once: order, bounds, resumption, and what an interruption leaves behind."""

import asyncio
import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from treeopo_storage import ProblemTree

from treeopo.engines.scripted import CharTokenizer, Pieces, ScriptedEngine, TreeWorld
from treeopo.errors import ConfigError, EngineDeadError, EngineError
from treeopo.records import Problem, Request
from treeopo.search.build import WINDOW, BuildProgress, build_trees
from treeopo.search.settings import SearchSettings

TOKENIZE = CharTokenizer()
WORLD = TreeWorld(branching=3, depth=3, success=lambda letters: 0.3)
PROBLEMS = [Problem(f"p{index}", f"{index}: ", "1") for index in range(24)]
SETTINGS = SearchSettings(rollouts=4, branching=2)


def policy(prompt: str, rng: random.Random, version: int) -> Pieces:
    """`WORLD`, whatever the question."""
    return WORLD(WORLD.question + prompt.partition(": ")[2], rng, version)


def jittered(request: Request) -> float:
    """Seconds that differ from request to request, so that searches finish out of order."""
    return (request.seed % 7) * 1e-4


class Build:
    """A build over a scripted engine whose commits are kept."""

    def __init__(self, engine: ScriptedEngine | None = None) -> None:
        self.engine = engine or ScriptedEngine(policy, latency=jittered)
        self.commits: list[list[ProblemTree]] = []
        self.reports: list[BuildProgress] = []

    def commit(self, batch: Sequence[ProblemTree]) -> None:
        self.commits.append(list(batch))

    @property
    def trees(self) -> list[ProblemTree]:
        return [tree for batch in self.commits for tree in batch]

    @property
    def ids(self) -> list[str]:
        return [tree.id for tree in self.trees]

    async def run(
        self,
        first_index: int = 0,
        concurrency: int = 5,
        commit_every: int = 4,
        encode_prompt: Callable[[Problem], Sequence[int]] = lambda problem: TOKENIZE.encode(problem.question),
    ) -> BuildProgress:
        return await build_trees(
            PROBLEMS,
            first_index,
            encode_prompt,
            self.engine,
            WORLD.grade,
            TOKENIZE,
            SETTINGS,
            seed=11,
            commit=self.commit,
            concurrency=concurrency,
            commit_every=commit_every,
            on_progress=self.reports.append,
        )


def failing_at(request_number: int, error: EngineError) -> ScriptedEngine:
    return ScriptedEngine(policy, latency=jittered, failures={request_number: error})


def assert_same_trees(left: Sequence[ProblemTree], right: Sequence[ProblemTree]) -> None:
    assert [tree.id for tree in left] == [tree.id for tree in right]
    for one, other in zip(left, right, strict=True):
        assert one.texts == other.texts
        for name in ("parent", "visits", "value_sum", "reward", "token_ids", "teacher_logprobs"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


async def test_trees_are_committed_in_problem_order_and_in_batches() -> None:
    build = Build()
    await build.run()
    assert build.ids == [problem.id for problem in PROBLEMS]
    assert [len(batch) for batch in build.commits] == [4] * 6


async def test_trees_do_not_depend_on_concurrency_nor_on_latency() -> None:
    together, alone = Build(), Build(ScriptedEngine(policy))
    await together.run(concurrency=16)
    await alone.run(concurrency=1)
    assert_same_trees(together.trees, alone.trees)


async def test_problems_with_the_same_prompt_are_searched_with_different_seeds() -> None:
    build = Build()
    await build.run(encode_prompt=lambda problem: TOKENIZE.encode("0: "))
    assert len({tree.texts[1:] for tree in build.trees}) > len(PROBLEMS) // 2


async def test_no_more_searches_are_in_flight_than_allowed_and_that_many_are() -> None:
    build = Build()
    await build.run(concurrency=5)
    assert build.engine.peak_in_flight == 5


async def test_searches_run_ahead_of_a_stuck_problem_by_a_bounded_window() -> None:
    stuck, released = 5, asyncio.Event()

    async def sleep(seconds: float) -> None:
        await (released.wait() if seconds else asyncio.sleep(0))

    def latency(request: Request) -> float:
        return float(TOKENIZE.decode(list(request.token_ids)).startswith(f"{stuck}: "))

    build = Build(ScriptedEngine(policy, latency=latency, sleep=sleep))
    running = asyncio.create_task(build.run(concurrency=2, commit_every=1))
    for _ in range(5000):
        await asyncio.sleep(0)
    assert len(build.ids) == stuck
    assert build.reports[-1].problems == stuck + WINDOW * 2 - 1
    released.set()
    await running
    assert build.ids == [problem.id for problem in PROBLEMS]


async def test_a_build_cut_in_two_gives_the_trees_of_one_go() -> None:
    whole, head, tail = Build(), Build(failing_at(150, EngineDeadError("gone"))), Build()
    await whole.run()
    with pytest.raises(EngineDeadError):
        await head.run()
    assert 0 < len(head.ids) < len(PROBLEMS)
    await tail.run(first_index=len(head.ids))
    assert_same_trees(head.trees + tail.trees, whole.trees)


async def test_a_failed_request_is_named_with_its_problem_and_all_before_it_is_committed() -> None:
    build = Build(failing_at(150, EngineError("refused")))
    with pytest.raises(EngineError, match=r"^problem \d+ \('p\d+'\): refused$") as caught:
        await build.run()
    failed = int(str(caught.value).split()[1])
    assert build.ids == [problem.id for problem in PROBLEMS[:failed]]
    assert build.engine.in_flight == 0


async def test_a_dead_engine_keeps_its_kind_of_error() -> None:
    with pytest.raises(EngineDeadError):
        await Build(failing_at(0, EngineDeadError("gone"))).run()


async def test_cancelling_commits_the_whole_trees_and_leaves_nothing_in_flight() -> None:
    build = Build()
    running = asyncio.create_task(build.run(commit_every=1000))
    while not build.reports or build.reports[-1].problems < 9:
        await asyncio.sleep(1e-3)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert build.ids == [problem.id for problem in PROBLEMS[: len(build.ids)]]
    assert 0 < len(build.ids) < len(PROBLEMS)
    assert build.reports[-1].problems < 15  # the rest was given up, not waited for
    assert build.engine.in_flight == 0


async def test_after_a_failed_commit_nothing_is_committed() -> None:
    class FullDisk(Build):
        calls = 0

        def commit(self, batch: Sequence[ProblemTree]) -> None:
            self.calls += 1
            if self.calls == 2:
                raise OSError("disk full")
            super().commit(batch)

    build = FullDisk()
    with pytest.raises(OSError, match="disk full"):
        await build.run(commit_every=4)
    assert build.calls == 2
    assert build.ids == ["p0", "p1", "p2", "p3"]
    assert build.engine.in_flight == 0


async def test_searches_go_on_while_a_commit_waits_for_the_disk() -> None:
    class SlowDisk(Build):
        def commit(self, batch: Sequence[ProblemTree]) -> None:
            assert searched_on.wait(timeout=60)
            super().commit(batch)

    searched_on = threading.Event()
    build = SlowDisk()
    running = asyncio.create_task(build.run(concurrency=1, commit_every=4))
    while not build.reports or build.reports[-1].problems < 8:
        await asyncio.sleep(1e-3)
    assert build.commits == []
    searched_on.set()
    await running
    assert build.ids == [problem.id for problem in PROBLEMS]


async def test_a_commit_under_way_is_not_abandoned_by_a_cancellation() -> None:
    class SlowDisk(Build):
        def commit(self, batch: Sequence[ProblemTree]) -> None:
            started.set()
            assert cancelled.wait(timeout=60)
            super().commit(batch)

    started, cancelled = threading.Event(), threading.Event()
    build = SlowDisk()
    running = asyncio.create_task(build.run(concurrency=1, commit_every=4))
    while not started.is_set():
        await asyncio.sleep(1e-3)
    running.cancel()
    await asyncio.sleep(1e-2)
    cancelled.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert build.ids[:4] == ["p0", "p1", "p2", "p3"]


async def test_progress_counts_problems_nodes_requests_and_solved_share() -> None:
    build = Build()
    progress = await build.run()
    assert list(dict.fromkeys(report.problems for report in build.reports)) == list(range(len(PROBLEMS) + 1))
    assert list(dict.fromkeys(report.requests for report in build.reports)) == list(range(progress.requests + 1))
    assert progress == build.reports[-1]
    assert progress.nodes == sum(tree.node_count for tree in build.trees)
    assert progress.requests == build.engine.requests
    solved = sum(bool((tree.reward == 1).any()) for tree in build.trees)
    assert 0 < progress.solved_share == solved / len(PROBLEMS) < 1
    assert progress.traces == progress.expected == sum(int(tree.visits[0]) for tree in build.trees)
    assert progress.solved_traces == sum(tree.value_sum[0] for tree in build.trees) > 0
    assert build.reports[0] == BuildProgress(expected=len(PROBLEMS) * SETTINGS.rollouts)
    assert any(report.traces for report in build.reports if not report.problems)
    stored = sum(len(tree.token_ids) - int(tree.token_offsets[1]) for tree in build.trees)
    assert progress.tokens >= stored  # repeated steps were answered too


async def test_a_finished_build_has_nothing_left_to_do() -> None:
    build = Build()
    assert (await build.run(first_index=len(PROBLEMS))).problems == 0
    assert build.commits == []


@pytest.mark.parametrize("bad", [{"concurrency": 0}, {"commit_every": 0}])
async def test_impossible_bounds_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must be at least 1"):
        await Build().run(**bad)
