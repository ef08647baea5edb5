"""Problems one after another, read ahead in threads, for consumers that live on an event loop."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from treeopo_storage.protocol import TreeStore
from treeopo_storage.schema import ProblemTree

NODES_PER_BLOCK: Final = 4096  # about 4 MB at 60 tokens a step; larger blocks measured no faster


def problem_blocks(
    first_node: npt.NDArray[np.int64], nodes_per_block: int = NODES_PER_BLOCK
) -> Iterator[tuple[int, int]]:
    """Runs [start, stop) of problems, each of at most `nodes_per_block` nodes or one problem; first_node (n+1,)."""
    start, count = 0, len(first_node) - 1
    while start < count:
        fits = int(np.searchsorted(first_node, first_node[start] + nodes_per_block, side="right")) - 1
        stop = min(max(fits, start + 1), count)
        yield start, stop
        start = stop


async def stream_problems(
    store: TreeStore, start: int = 0, *, nodes_per_block: int = NODES_PER_BLOCK, prefetch: int = 2
) -> AsyncGenerator[ProblemTree]:
    """Problems `start` and after of the store's snapshot, in order, never blocking the event loop on the disk.

    At most `prefetch` blocks are read ahead of the one being consumed, so memory stays below (prefetch + 1) blocks
    however large the store and however slow the consumer.
    """
    if prefetch < 1:
        raise ValueError(f"prefetch must be at least 1, is {prefetch}")
    first_node = (await asyncio.to_thread(lambda: store.structure().first_node))[start:]
    blocks = problem_blocks(first_node, nodes_per_block)
    ahead: deque[asyncio.Task[list[ProblemTree]]] = deque()

    def read_one_more() -> None:
        if (block := next(blocks, None)) is not None:
            ahead.append(asyncio.create_task(asyncio.to_thread(store.problems, start + block[0], start + block[1])))

    try:
        for _ in range(prefetch):
            read_one_more()
        while ahead:
            trees = await ahead.popleft()
            read_one_more()
            for tree in trees:
                yield tree
    finally:
        for task in ahead:
            task.cancel()
        await asyncio.gather(*ahead, return_exceptions=True)
