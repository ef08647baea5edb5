"""Time that jumps is still time: order, durations and timeouts are those of a real loop."""

import asyncio

import pytest

from treeopo.engines.simulated_time import DeadlockError, run_simulated


def test_a_day_passes_at_once_and_is_a_day_on_the_loop_s_clock() -> None:
    async def day() -> float:
        await asyncio.sleep(86_400)
        return asyncio.get_running_loop().time()

    assert run_simulated(day()) == 86_400


def test_tasks_wake_in_the_order_of_their_timers() -> None:
    async def race() -> list[float]:
        woken: list[float] = []

        async def sleeper(seconds: float) -> None:
            await asyncio.sleep(seconds)
            woken.append(seconds)

        await asyncio.gather(*(sleeper(seconds) for seconds in (3, 1, 2.5, 0, 2)))
        return woken

    assert run_simulated(race()) == [0, 1, 2, 2.5, 3]


def test_a_timeout_fires_at_its_time() -> None:
    async def late() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.sleep(6)
        return asyncio.get_running_loop().time()

    assert run_simulated(late()) == 5


def test_waiting_for_what_never_comes_is_an_error_and_not_a_hang() -> None:
    async def wait() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(DeadlockError):
        run_simulated(wait())
