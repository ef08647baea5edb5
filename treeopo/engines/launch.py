"""Which engine serves a model, and in which form new policies reach it."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from treeopo.engines.balanced import BalancedEngine
from treeopo.engines.in_process import VllmEngine
from treeopo.engines.restarting import RestartingEngine
from treeopo.engines.settings import Adapters, EngineOptions
from treeopo.ports import Engine


async def start_engine(model: str, options: EngineOptions, adapters: Adapters | None = None) -> Engine:
    """An engine that serves `model` as policy version 0: the servers of `options.urls`, or one started here, which
    takes 10 to 60 seconds and is started again if it dies.

    adapters: the policies that will be published, None if none will be.

    Raises:
        ModelError: the model cannot be served, or vLLM is not installed.
        EngineDeadError: the engine cannot be reached.
    """
    if options.urls:
        from treeopo.engines.server import ServerEngine  # httpx comes with treeopo[train]

        starts = [partial(ServerEngine.start, url, model, options, adapters) for url in options.urls]
        return await starts[0]() if len(starts) == 1 else await BalancedEngine.start(starts)
    return await RestartingEngine.open(partial(_start_in_process, model, options, adapters), options.restart)


async def _start_in_process(model: str, options: EngineOptions, adapters: Adapters | None) -> VllmEngine:
    # The kernel ends an engine process with the thread that started it, so that thread lives as long as the engine.
    thread = ThreadPoolExecutor(1, "engine")
    try:
        return await asyncio.get_running_loop().run_in_executor(
            thread, lambda: VllmEngine.start(model, options, adapters, thread)
        )
    except BaseException:
        thread.shutdown(wait=False)
        raise
