"""The clock jumps to the next timer, and waits for threads of the executor."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

from trainer.virtual_clock import VirtualClockLoop


def on_virtual_clock(work: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        return runner.run(work)


def now() -> float:
    return asyncio.get_running_loop().time()


def test_timers_fire_in_order_at_their_own_times() -> None:
    async def work() -> list[tuple[str, float]]:
        fired: list[tuple[str, float]] = []

        async def at(name: str, seconds: float) -> None:
            await asyncio.sleep(seconds)
            fired.append((name, round(now(), 6)))

        await asyncio.gather(at("late", 7200.0), at("early", 0.5), at("middle", 3600.0))
        return fired

    assert on_virtual_clock(work()) == [("early", 0.5), ("middle", 3600.0), ("late", 7200.0)]


def test_a_timeout_is_of_the_virtual_clock() -> None:
    async def work() -> float:
        try:
            async with asyncio.timeout(86_400.0 * 3):  # longer than the loop's longest wait for a selector
                await asyncio.Event().wait()
        except TimeoutError:
            return now()
        return 0.0

    assert round(on_virtual_clock(work())) == 86_400 * 3


def test_work_that_needs_no_time_takes_none() -> None:
    async def work() -> float:
        for _ in range(100):
            await asyncio.sleep(0)
        return now()

    assert on_virtual_clock(work()) == 0.0


def test_the_clock_stands_still_while_a_thread_of_the_executor_works() -> None:
    async def work() -> tuple[float, float]:
        hold = threading.Event()
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(1.0)
                ticks += 1

        ticking = asyncio.create_task(tick())
        asyncio.get_running_loop().call_soon(threading.Timer(0.05, hold.set).start)
        assert await asyncio.to_thread(hold.wait, 30.0)
        during = now()
        await asyncio.sleep(10.0)
        ticking.cancel()
        return during, now()

    during, after = on_virtual_clock(work())
    assert (during, after) == (0.0, 10.0)


def test_a_thread_of_its_own_can_hand_in_a_result_where_no_timer_is_set() -> None:
    async def work() -> str:
        loop = asyncio.get_running_loop()
        result: asyncio.Future[str] = loop.create_future()
        thread = threading.Thread(target=lambda: loop.call_soon_threadsafe(result.set_result, "there"))
        thread.start()
        try:
            return await result
        finally:
            thread.join()

    assert on_virtual_clock(work()) == "there"
