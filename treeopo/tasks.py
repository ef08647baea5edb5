"""asyncio's run from anywhere, its gather with cancellation, and a garbage collector that lets many tasks live."""

import asyncio
import gc
from collections.abc import Coroutine, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any, TypeVar

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`, where an event loop runs already too, as in a notebook: in a thread, which the caller waits for.

    An exception in the caller while it waits, such as a KeyboardInterrupt, cancels the work before it is raised.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any] | None]] = Future()

    async def tell_and_work() -> T:
        started.set_result((asyncio.get_running_loop(), asyncio.current_task()))
        return await work

    with ThreadPoolExecutor(1, "treeopo") as thread:
        running = thread.submit(copy_context().run, asyncio.run, tell_and_work())
        try:
            return running.result()
        except BaseException:
            loop, task = started.result()
            if not running.done() and task is not None:
                loop.call_soon_threadsafe(task.cancel)
            raise


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
