"""Streaming reads ahead, but only so far."""

import asyncio
import threading

import pytest
from treeopo_storage import MemoryTreeStore, ProblemTree, StoreMeta
from treeopo_storage.columnar import ColumnarStore
from treeopo_storage.conformance import random_tree
from treeopo_storage.streaming import stream_problems


class CountingStore(ColumnarStore):
    """Counts the blocks read, and says when a read blocks."""

    def __init__(self, source: MemoryTreeStore) -> None:
        super().__init__(source)
        self.blocks: list[tuple[int, int]] = []
        self.may_read = threading.Event()
        self.may_read.set()

    def problems(self, start: int, stop: int) -> list[ProblemTree]:
        self.may_read.wait(timeout=60)
        self.blocks.append((start, stop))
        return super().problems(start, stop)


@pytest.fixture
def store() -> CountingStore:
    memory = MemoryTreeStore(StoreMeta("0123456789abcdef", "teacher"))
    with memory.open_writer() as writer:
        writer.append([random_tree(f"p{seed}", seed, nodes=10) for seed in range(20)])
    return CountingStore(memory)


async def test_every_problem_comes_once_and_in_order(store: CountingStore) -> None:
    assert [tree.id async for tree in stream_problems(store, nodes_per_block=30)] == [f"p{i}" for i in range(20)]
    assert [tree.id async for tree in stream_problems(store, 17, nodes_per_block=10)] == ["p17", "p18", "p19"]
    assert [tree.id async for tree in stream_problems(store, 20)] == []


async def test_a_slow_consumer_is_never_more_than_the_prefetch_behind(store: CountingStore) -> None:
    stream = stream_problems(store, nodes_per_block=20, prefetch=2)
    for consumed in range(1, 9):
        await anext(stream)
        await asyncio.sleep(0.02)  # time enough to read further, were it allowed
        blocks_begun = (consumed + 1) // 2
        assert len(store.blocks) <= blocks_begun + 2
    await stream.aclose()


async def test_the_event_loop_runs_while_the_disk_is_waited_for(store: CountingStore) -> None:
    store.may_read.clear()
    first = asyncio.ensure_future(anext(stream_problems(store)))
    await asyncio.sleep(0.01)
    assert not first.done()
    store.may_read.set()
    assert (await first).id == "p0"


async def test_leaving_early_leaves_no_task_behind(store: CountingStore) -> None:
    stream = stream_problems(store, nodes_per_block=10)
    await anext(stream)
    await stream.aclose()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_prefetch_of_nothing_is_refused(store: CountingStore) -> None:
    with pytest.raises(ValueError, match="prefetch must be at least 1"):
        await anext(stream_problems(store, prefetch=0))
