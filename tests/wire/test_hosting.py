"""A driver's servers: the claims to them are renewed, and their end is theirs alone."""

from __future__ import annotations

import asyncio

import pytest

import wire.hosting
from tests.wire.fake_cluster import FakeActor, FakeCluster, plan
from wire.claim import NotYours, Owner
from wire.errors import ServiceError
from wire.hosting import PlacedServer

MINE, OTHER = Owner("/runs/a", "1", "01", 100.0), Owner("/runs/b", "2", "02", 100.0)


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def server(cluster: FakeCluster) -> PlacedServer:
    return PlacedServer(plan(), cluster, MINE, print)


def only(cluster: FakeCluster) -> FakeActor:
    (actor,) = cluster.actors.values()
    return actor


async def test_before_it_has_a_node_there_is_nothing_to_check_or_to_end(server: PlacedServer) -> None:
    with pytest.raises(ServiceError, match="replica-0 has no node yet"):
        await server.check()
    await server.stop()


async def test_it_is_placed_once_started_and_ended(cluster: FakeCluster, server: PlacedServer) -> None:
    await server.place()
    assert await server.start() == only(cluster).host.process.url
    await server.check()
    await server.stop()
    assert only(cluster).host.process.is_ended and only(cluster).is_killed


async def test_its_claim_is_renewed_also_while_it_starts(
    cluster: FakeCluster, server: PlacedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire.hosting, "RENEW_S", 0.01)
    await server.place()
    host = only(cluster).host
    host.process.answers.clear()
    starting = asyncio.create_task(server.start())
    for _ in range(20):
        cluster.clock.now += 99.0
        async with asyncio.timeout(5):
            while host.held().silent_s:
                await asyncio.sleep(0.005)
    host.process.answers.set()
    await starting
    await server.stop()


async def test_one_that_another_driver_took_over_is_neither_used_nor_ended(
    cluster: FakeCluster, server: PlacedServer
) -> None:
    await server.start()
    assert only(cluster).host.take(OTHER, MINE.life, is_dead=True)
    with pytest.raises(NotYours, match="taken over by the driver of /runs/b"):
        await server.check()
    await server.stop()
    assert only(cluster).host.process.is_alive() and not only(cluster).is_killed


async def test_another_drivers_is_left_alone_also_where_that_was_not_known(
    cluster: FakeCluster, server: PlacedServer
) -> None:
    await server.start()
    assert only(cluster).host.take(OTHER, MINE.life, is_dead=True)
    await server.stop()
    assert only(cluster).host.process.is_alive() and not only(cluster).is_killed


async def test_an_end_that_is_given_up_ends_the_host(cluster: FakeCluster, server: PlacedServer) -> None:
    await server.start()
    only(cluster).silent.add("stop")
    ending = asyncio.create_task(server.stop())
    await asyncio.sleep(0.05)
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
    assert only(cluster).is_killed


async def test_one_that_waits_for_a_node_is_ended_at_once(cluster: FakeCluster, server: PlacedServer) -> None:
    cluster.has_room = False
    placing = asyncio.create_task(server.place())
    await asyncio.sleep(0.05)
    only(cluster).silent.add("stop")
    placing.cancel()
    await asyncio.gather(placing, return_exceptions=True)
    async with asyncio.timeout(5):
        await server.stop()
    assert only(cluster).is_killed
