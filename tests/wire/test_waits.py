"""Who waits for whom."""

import asyncio

import pytest

from wire.waits import WAITS, waiter, waiting


async def test_a_wait_names_its_waiter_peer_and_reason_while_it_lasts():
    with waiter("group 12"), waiting("replica http://a", "writes"):
        (wait,) = WAITS.current
        assert (wait.who, wait.peer, wait.reason) == ("group 12", "replica http://a", "writes")
        assert wait.since <= asyncio.get_running_loop().time()
    assert not WAITS.current


async def test_a_task_waits_on_behalf_of_whoever_started_it():
    async def work():
        with waiting("judge http://j", "judges"):
            return WAITS.current[-1].who

    with waiter("group 1"):
        first = asyncio.create_task(work())
    with waiter("group 2"):
        second = asyncio.create_task(work())
    assert await asyncio.gather(first, second, work()) == ["group 1", "group 2", "driver"]


async def test_listeners_hear_of_each_wait_once_when_it_ends_with_what_became_known_of_it():
    heard = []
    with WAITS.heard_by(lambda wait, end: heard.append((wait.peer, end >= wait.since))):
        with waiting("judge http://j", "judges") as wait:
            wait.peer = "genrm http://g"
        WAITS.end(wait)
        with pytest.raises(ValueError, match="broken"), waiting("disk", "checkpoint"):
            raise ValueError("broken")
    with waiting("disk", "checkpoint"):
        pass
    assert heard == [("genrm http://g", True), ("disk", True)]
