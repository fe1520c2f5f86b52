"""What a prompt waits for while replicas write, one wait a completion."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from rollout_server.client import HAS_NOBODY, WRITES
from tests.rollout_server.test_client import FakeReplica, Reply, ask, client, frame, write_all
from tests.until import until
from wire.waits import WAITS, Wait, waiter


@pytest.fixture
async def replica() -> AsyncIterator[FakeReplica]:
    fake = FakeReplica()
    await fake.server.start_server()
    yield fake
    await fake.server.close()


@pytest.fixture
def over() -> Iterator[list[tuple[str, str, str]]]:
    """(who, peer, reason) of the waits that are over."""
    found: list[tuple[str, str, str]] = []

    def hear(wait: Wait, end: float) -> None:
        assert end >= wait.since
        found.append((wait.who, wait.peer, wait.reason))

    with WAITS.heard_by(hear):
        yield found


def current() -> list[str]:
    return [wait.reason for wait in WAITS.current]


async def test_a_completion_s_wait_ends_when_it_is_there_and_the_others_go_on(replica, over) -> None:
    go_on = asyncio.Event()

    async def one_then_the_other(reply: Reply) -> None:
        await reply.send(frame(1, [11, 2], "stop", "0.7"))
        await go_on.wait()
        await reply.send(frame(0, [10, 2, 2], "stop", "0.7"))

    replica.scripts = [one_then_the_other]
    async with client(replica) as rollouts:
        with waiter("group 3"):
            asking = asyncio.create_task(ask(rollouts))
        await until(lambda: over)
        assert over == [("group 3", f"replica {replica.url}", WRITES)] and current() == [WRITES]
        go_on.set()
        await asking
        assert len(over) == 2 and current() == []
        assert rollouts.roster.membership.replicas[0].num_tokens == 5


async def test_what_is_asked_for_again_waits_for_the_other_replica_and_leaving_ends_all(replica, over) -> None:
    async def one_then_nothing(reply: Reply) -> None:
        await reply.send(frame(0, [10, 2], "stop", "0.7"))
        reply.drop()

    async def nothing(reply: Reply) -> None:
        await asyncio.Event().wait()

    other = FakeReplica()
    await other.server.start_server()
    replica.scripts, other.scripts = [one_then_nothing], [nothing]
    try:
        async with client(replica, other) as rollouts:
            asking = asyncio.create_task(ask(rollouts))
            await until(lambda: [wait.peer for wait in WAITS.current] == [f"replica {other.url}"])
            assert [peer for _, peer, _ in over] == [f"replica {replica.url}"] * 2
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            assert current() == [] and len(over) == 3
    finally:
        await other.server.close()


async def test_without_a_replica_a_prompt_has_one_wait_however_often_it_looks_up(
    replica, over, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollout_server.client.NEWS_S", 0.001)
    replica.scripts = [write_all]
    async with client() as rollouts:
        asking = asyncio.create_task(ask(rollouts))
        await until(lambda: current() == [HAS_NOBODY])
        (wait,) = WAITS.current
        for _ in range(20):
            await asyncio.sleep(0.002)
        assert WAITS.current == [wait] and over == []
        rollouts.roster.add(replica.url)
        await asking
    assert [reason for *_, reason in over] == [HAS_NOBODY, WRITES, WRITES]
