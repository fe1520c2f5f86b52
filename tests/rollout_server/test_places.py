"""Who has how much to write, and who waits."""

from __future__ import annotations

import asyncio

from rollout_server.membership import Replica
from rollout_server.places import Places


def futures(num: int) -> list[asyncio.Future[None]]:
    return [asyncio.get_running_loop().create_future() for _ in range(num)]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_replica_with_the_fewest_completions_is_chosen_and_a_full_one_is_not() -> None:
    places, one, two = Places(4), Replica("http://one"), Replica("http://two")
    assert places.choose([one, two], set()) is one
    with places.held(one, futures(4)), places.held(two, futures(3)):
        assert places.choose([one, two], set()) is two
        assert places.choose([one, two], {two}) is None
        with places.held(two, futures(4)):  # a prompt's completions go together, the last ones beyond the room
            assert places.choose([one, two], set()) is None
        assert places.choose([one, two], set()) is two
    assert places.choose([one, two], set()) is one


async def test_a_completion_that_is_done_makes_room_and_one_that_was_done_before_takes_none() -> None:
    places, one = Places(2), Replica("http://one")
    done, first, second = futures(3)
    done.set_result(None)
    with places.held(one, [done, first, second]):
        assert places.choose([one], set()) is None
        first.set_result(None)
        await settle()
        assert places.choose([one], set()) is one
    assert not second.done() and places.choose([one], set()) is one


async def test_without_a_limit_the_least_loaded_is_chosen_however_much_it_has() -> None:
    places, one, two = Places(0), Replica("http://one"), Replica("http://two")
    with places.held(one, futures(1000)), places.held(two, futures(999)):
        assert places.choose([one, two], set()) is two


async def test_a_replica_with_a_room_of_its_own_is_full_sooner_and_the_others_are_not() -> None:
    places, one, two = Places(4), Replica("http://one"), Replica("http://two")
    places.set_room(one, 2)
    assert (places.room(one), places.room(two), places.in_flight(one)) == (2, 4, 0)
    with places.held(one, futures(2)), places.held(two, futures(3)):
        assert places.in_flight(one) == 2
        assert places.choose([one], set()) is None and places.choose([one, two], set()) is two


async def test_a_room_that_grows_wakes_as_many_as_it_has_room_for_more_and_one_that_shrinks_nobody() -> None:
    places, one = Places(3), Replica("http://one")
    with places.held(one, futures(3)):
        waiting = [asyncio.create_task(places.wait(age)) for age in range(4)]
        await settle()
        for room, num_woken in ((2, 0), (3, 0), (5, 2)):
            places.set_room(one, room)
            await settle()
            assert [task.done() for task in waiting] == [True] * num_woken + [False] * (4 - num_woken)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_of_a_replica_that_has_more_than_its_room_nothing_is_taken_and_nobody_follows_until_it_is_below() -> None:
    places, one = Places(4), Replica("http://one")
    written = futures(4)
    with places.held(one, written):
        places.set_room(one, 3)
        waiting = asyncio.create_task(places.wait(0))
        for future, is_woken in zip(written, (False, True, True, True), strict=True):
            future.set_result(None)
            await settle()
            assert waiting.done() == is_woken


async def test_the_oldest_prompt_is_woken_first_and_passes_its_turn_on_where_it_has_gone() -> None:
    places, one = Places(1), Replica("http://one")
    (future,) = futures(1)
    with places.held(one, [future]):
        waiting = {age: asyncio.create_task(places.wait(age)) for age in (7, 3, 5)}
        await settle()
        waiting[3].cancel()
        await settle()
        future.set_result(None)
        await settle()
        assert waiting[5].done() and not waiting[7].done()
    late = asyncio.create_task(places.wait(1))
    await settle()
    places.wake(1)
    late.cancel()  # it was woken and has not run yet
    await settle()
    assert waiting[7].done()


class Members:
    """A fleet that a test changes."""

    def __init__(self) -> None:
        self.there: list[Replica] = []
        self.event = asyncio.Event()

    def ready(self) -> list[Replica]:
        return self.there

    async def changed(self, timeout_s: float) -> None:
        await self.event.wait()
        self.event.clear()


async def test_a_replica_that_comes_wakes_as_many_as_it_has_room_for_and_all_wake_when_nobody_writes() -> None:
    places, members = Places(2), Members()
    following = asyncio.create_task(places.follow(members))
    waiting = [asyncio.create_task(places.wait(age)) for age in range(4)]
    await settle()
    members.there = [Replica("http://one")]
    members.event.set()
    await settle()
    assert [task.done() for task in waiting] == [True, True, False, False]
    members.there = []
    members.event.set()
    await settle()
    assert all(task.done() for task in waiting)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
