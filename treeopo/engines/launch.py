"""Which engine serves a model: a vLLM process started here, vLLM servers by URL, or an engine of the user's own."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from inspect import isawaitable
from pathlib import Path

from treeopo import stages
from treeopo.engines.balanced import BalancedEngine
from treeopo.engines.in_process import VllmEngine, new_log
from treeopo.engines.restarting import RestartingEngine
from treeopo.engines.settings import ENGINES, Adapters, EngineOptions
from treeopo.engines.vllm_process import stage
from treeopo.errors import ConfigError
from treeopo.plugins import find
from treeopo.ports import Engine

StartEngine = Callable[[str, EngineOptions, Adapters | None], Awaitable[Engine]]
"""(model, options, adapters) to an engine that serves the model, a hub name or directory, as policy version 0.

adapters: the policies that will be published, None if none will be.
"""


_LOOK_SECONDS = 0.5
"""Between two looks into the log of an engine that starts."""


async def start_engine(model: str, options: EngineOptions, adapters: Adapters | None = None) -> Engine:
    """A `StartEngine`: starts the engine that `options.kind` names.

    Raises:
        ConfigError: `options.kind` names no start function.
        ModelError: the model cannot be served, or vLLM is not installed.
        EngineDeadError: the engine cannot be reached.
    """
    kind = options.kind
    if kind == "auto":
        kind = "server" if options.urls else "vllm"
    start = find(kind, ENGINES, "engine.kind")
    starting = start(model, options, adapters) if callable(start) else None
    if not isawaitable(starting):
        raise ConfigError(f"engine.kind {kind}: it must be `async def start(model, options, adapters)`")
    engine: Engine = await starting
    return engine


async def start_vllm(model: str, options: EngineOptions, adapters: Adapters | None) -> Engine:
    """A `StartEngine`: an engine process of this one, which takes 10 to 60 seconds and is started again if it dies."""
    return await RestartingEngine.open(partial(_start_in_process, model, options, adapters), options.restart)


async def start_servers(model: str, options: EngineOptions, adapters: Adapters | None) -> Engine:
    """A `StartEngine`: the servers of `options.urls`, as one."""
    from treeopo.engines.server import ServerEngine  # httpx comes with treeopo[train]

    starts = [partial(ServerEngine.start, url, model, options, adapters) for url in options.urls]
    return await starts[0]() if len(starts) == 1 else await BalancedEngine.start(starts)


async def _start_in_process(model: str, options: EngineOptions, adapters: Adapters | None) -> VllmEngine:
    # The kernel ends an engine process with the thread that started it, so that thread lives as long as the engine.
    thread, log = ThreadPoolExecutor(1, "engine"), new_log()
    watch = asyncio.create_task(_tell_stages(log))
    try:
        return await asyncio.get_running_loop().run_in_executor(
            thread, lambda: VllmEngine.start(model, options, adapters, thread, log)
        )
    except BaseException:
        thread.shutdown(wait=False)
        raise
    finally:
        watch.cancel()


async def _tell_stages(log: Path) -> None:
    """Tell what an engine that starts is at, by its log."""
    while True:
        stages.detail(stage(log.read_text(errors="replace") if log.exists() else ""))
        await asyncio.sleep(_LOOK_SECONDS)
