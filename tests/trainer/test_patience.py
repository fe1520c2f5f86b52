"""Which of an evaluation's requests no longer give way: none before its time, and never more than the share."""

from __future__ import annotations

import asyncio

from trainer.patience import Patience


class Requests:
    """All of an evaluation's, each open until it is ended; `open` are those that have their turn, in order."""

    def __init__(self, patience: Patience, num: int) -> None:
        self.open: list[tuple[asyncio.Event, asyncio.Event]] = []
        self.tasks = [asyncio.create_task(self._one(patience)) for _ in range(num)]

    async def _one(self, patience: Patience) -> None:
        async with patience.turn() as hurry:
            done = asyncio.Event()
            self.open.append((hurry, done))
            await done.wait()

    @property
    def hurried(self) -> int:
        return sum(hurry.is_set() for hurry, _ in self.open)

    async def end(self, *numbers: int) -> None:
        for number in numbers:
            self.open[number][1].set()
        await settle()

    async def cancel(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def begun(num: int, *, at_once: int, window: float, per_step: float) -> tuple[Patience, Requests]:
    patience = Patience(num, at_once=at_once, window=window, per_step=per_step)
    requests = Requests(patience, num)
    await settle()
    return patience, requests


async def test_few_go_at_once_and_who_is_done_makes_room() -> None:
    _, requests = await begun(10, at_once=3, window=10, per_step=1)
    assert len(requests.open) == 3 and requests.hurried == 0
    await requests.end(1)
    assert len(requests.open) == 4 and requests.hurried == 0
    await requests.cancel()


async def test_what_is_behind_is_hurried_the_oldest_first_and_makes_room_for_the_next() -> None:
    patience, requests = await begun(20, at_once=2, window=10, per_step=100)
    patience.step_done()  # 2 of 20 are due after 1 step of 10
    await settle()
    assert [hurry.is_set() for hurry, _ in requests.open] == [True, True, False, False]
    for _ in range(2):
        patience.step_done()
        await settle()
    assert requests.hurried == 6 and len(requests.open) == 8
    await requests.cancel()


async def test_nobody_is_hurried_as_long_as_idle_places_do_the_work() -> None:
    patience, requests = await begun(20, at_once=4, window=10, per_step=100)
    for step in range(10):
        await requests.end(*range(2 * step, 2 * step + 2))
        patience.step_done()
    assert requests.hurried == 0 and all(done.is_set() for _, done in requests.open)
    await asyncio.gather(*requests.tasks)


async def test_the_share_is_kept_and_all_have_their_turn_in_the_end() -> None:
    patience, requests = await begun(10, at_once=2, window=4, per_step=0.5)
    for step in range(1, 21):
        patience.step_done()
        await settle()
        assert requests.hurried == min(10, step // 2)
    await requests.end(*range(10))
    await asyncio.gather(*requests.tasks)


async def test_without_a_share_they_give_way_for_ever() -> None:
    patience, requests = await begun(4, at_once=2, window=1, per_step=0)
    for _ in range(100):
        patience.step_done()
    assert requests.hurried == 0
    await requests.cancel()


async def test_a_turn_that_came_late_is_hurried_at_once() -> None:
    """What may be hurried, and nobody asks for yet, is kept until somebody does: comparisons come after answers."""
    patience = Patience(4, at_once=1, window=1, per_step=4)
    patience.step_done()
    requests = Requests(patience, 4)
    await settle()
    assert requests.hurried == len(requests.open) == 4
    await requests.cancel()
