"""What a dead driver left: taken over where it is the same, ended where its run needs the place, else left."""

from __future__ import annotations

import asyncio

import pytest

import wire.estate
from tests.wire.fake_cluster import IDENTITY, OTHER, FakeActor, FakeCluster, plan
from wire.claim import LEASE_S, Owner
from wire.estate import claimed, inherited, remnants
from wire.hosting import PlacedServer, Plan
from wire.identity import Identity

BEFORE, MINE = Owner("/runs/a", "1", "01", 100.0), Owner("/runs/a", "2", "02", 100.0)
OTHERS = Owner("/runs/b", "3", "03", 100.0)


@pytest.fixture
def cluster() -> FakeCluster:
    cluster = FakeCluster()
    cluster.dead.add(BEFORE.life)
    return cluster


async def left(
    cluster: FakeCluster, *indices: int, owner: Owner = BEFORE, identity: Identity = IDENTITY
) -> list[FakeActor]:
    """Started servers of a driver."""
    actors = [cluster.launch(plan(index, identity), owner) for index in indices]
    for actor in actors:
        await cluster.ask(actor, "start", owner.life)
    return actors


async def heirs(
    cluster: FakeCluster, owner: Owner = MINE, *, num: int = 2
) -> tuple[dict[int, PlacedServer], list[str]]:
    said: list[str] = []

    def plan_of(index: int) -> Plan | None:
        return plan(index) if index < num else None

    return await inherited(cluster, owner, "replica", plan_of, said.append), said


async def test_what_is_the_same_is_this_drivers_from_now_on(cluster: FakeCluster) -> None:
    actors = await left(cluster, 0, 1)
    found, said = await heirs(cluster)
    assert sorted(found) == [0, 1] and all("taken over" in line and "of /runs/a" in line for line in said)
    for index, actor in enumerate(actors):
        assert actor.host.held().owner == MINE
        assert await found[index].start() == actor.host.process.url and actor.host.process.num_starts == 1
    for server in found.values():
        await server.stop()
    assert all(actor.is_killed for actor in actors)


async def test_the_next_run_takes_over_what_is_the_same(cluster: FakeCluster) -> None:
    await left(cluster, 0)
    found, _ = await heirs(cluster, OTHERS)
    assert sorted(found) == [0]


async def test_what_is_another_is_ended_where_the_run_is_the_same_and_left_where_it_is_not(
    cluster: FakeCluster,
) -> None:
    (actor,) = await left(cluster, 0, identity=OTHER)
    found, said = await heirs(cluster, OTHERS)
    assert (found, said) == ({}, []) and actor.host.process.is_alive() and actor.host.held().owner == BEFORE
    found, said = await heirs(cluster)
    assert found == {} and said == [
        "left by a dead driver, and ended: replica-0-0 at http://replica-0-0 of /runs/a: "
        "command: model-b in the place of model-a"
    ]
    assert actor.host.process.is_ended and actor.is_killed


async def test_more_than_are_wanted_are_ended(cluster: FakeCluster) -> None:
    actors = await left(cluster, 0, 1, 2)
    found, said = await heirs(cluster, num=2)
    assert sorted(found) == [0, 1] and "it is not needed" in said[-1]
    assert [actor.is_killed for actor in actors] == [False, False, True]


async def test_two_of_one_index_are_not_both_needed(cluster: FakeCluster) -> None:
    actors = await left(cluster, 0, 0)
    found, _ = await heirs(cluster)
    assert sorted(found) == [0] and [actor.is_killed for actor in actors] == [False, True]


async def test_a_living_drivers_are_left_alone(cluster: FakeCluster) -> None:
    (actor,) = await left(cluster, 0, owner=OTHERS)
    assert await heirs(cluster) == ({}, [])
    assert actor.host.held().owner == OTHERS


async def test_of_two_drivers_that_come_at_once_one_has_it(cluster: FakeCluster) -> None:
    await left(cluster, 0, 1)
    (mine, _), (others, _) = await asyncio.gather(heirs(cluster), heirs(cluster, OTHERS))
    assert sorted([*mine, *others]) == [0, 1]


async def test_a_driver_of_the_same_run_that_is_silent_is_followed_when_its_lease_has_run_out(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire.estate, "LOOK_AGAIN_S", 0.01)
    cluster.dead.clear()
    await left(cluster, 0)
    finding = asyncio.create_task(heirs(cluster))
    await asyncio.sleep(0.1)
    assert not finding.done()
    cluster.clock.now += LEASE_S + 1.0
    found, _ = await finding
    assert sorted(found) == [0]


async def test_one_that_is_heard_of_again_keeps_it(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire.estate, "LOOK_AGAIN_S", 0.01)
    cluster.dead.clear()
    (actor,) = await left(cluster, 0)
    cluster.clock.now += 30.0
    (remnant,) = await remnants(cluster, "replica")
    finding = asyncio.create_task(claimed(cluster, remnant, MINE, is_patient=True))
    await asyncio.sleep(0.1)
    assert not finding.done()
    actor.host.renew(BEFORE.life)
    assert not await finding


async def test_a_host_that_says_nothing_holds_up_nobody(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire.estate, "ASK_TIMEOUT_S", 0.05)
    silent, _ = await left(cluster, 0, 1)
    silent.silent |= {"held"}
    found, _ = await heirs(cluster)
    assert sorted(found) == [1]


async def test_one_that_falls_silent_before_it_is_claimed_is_not_taken(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire.estate, "ASK_TIMEOUT_S", 0.05)
    (actor,) = await left(cluster, 0)
    actor.silent.add("take")
    assert await heirs(cluster) == ({}, [])


async def test_what_was_claimed_is_ended_where_the_search_is_broken_off(cluster: FakeCluster) -> None:
    actors = await left(cluster, 0, 1)
    actors[1].silent.add("take")
    finding = asyncio.create_task(heirs(cluster))
    async with asyncio.timeout(5):
        while actors[0].host.held().owner != MINE:
            await asyncio.sleep(0.005)
    await asyncio.sleep(0.05)
    finding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await finding
    assert actors[0].is_killed and not actors[1].is_killed
