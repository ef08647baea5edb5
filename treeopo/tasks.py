"""asyncio's gather with cancellation of the rest, and relaxed garbage collection while many tasks live."""

import asyncio
import gc
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


async def gather_or_cancel(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results in order. The first failure, or being cancelled, cancels the rest before it is raised."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


@contextmanager
def patient_collector() -> Iterator[None]:
    """Relaxed garbage collection inside the `with` block: less often, and not among what is alive already.

    The thousands of requests of a batch all live until it is whole and are in no cycle, yet the collector walks over
    them time and again: half the cost of a completion in `benchmarks/async.py scripted`.
    """
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
