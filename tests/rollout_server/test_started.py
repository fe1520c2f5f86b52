"""Replicas of the run's own: started, buried, started again, more and fewer; their hosts are fakes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

import rollout_server.started as started_module
from rollout_server.config import RolloutSettings
from rollout_server.fleet import Fleet
from rollout_server.membership import State
from rollout_server.started import StartedReplicas
from tests.rollout_server.world import TOKEN, Server, World
from tests.until import until
from wire.errors import ServiceError
from wire.generation import PolicyVersion


class Host:
    """A place for one server of the world."""

    def __init__(self, server: Server | None) -> None:
        self.server = server
        self.is_dead = self.is_stopped = False
        self.num_starts = 0

    async def start(self) -> str:
        self.num_starts += 1
        if self.server is None:
            raise ServiceError("replica ended with exit code 1. ValueError: no such model.")
        return self.server.url

    async def check(self) -> None:
        if self.is_dead:
            raise ServiceError("replica ended with exit code -9.")

    async def stop(self) -> None:
        self.is_stopped = True


class Ground:
    """Three servers that hosts are made of, one after the other; None in `queue` is a host whose start fails."""

    def __init__(self, world: World, fleet: Fleet, settings: RolloutSettings) -> None:
        self.world, self.fleet, self.settings = world, fleet, settings
        self.queue: list[Server | None] = list(world.servers)
        self.hosts: list[Host] = []
        self.started = StartedReplicas(settings, fleet, self.place, world.say)

    def place(self, index: int) -> Host:
        self.hosts.append(Host(self.queue.pop(0)))
        return self.hosts[-1]

    def ready(self) -> list[int]:
        return sorted(self.world.index_of(replica.url) for replica in self.fleet.ready())


@pytest.fixture
async def ground(monkeypatch) -> AsyncIterator[Ground]:
    monkeypatch.setattr("wire.keeper.FIRST_PAUSE_S", 0.01)
    world = World()
    settings = RolloutSettings(
        device="cpu", probe_interval_s=0.02, probe_timeout_s=0.5, drain_timeout_s=1.0, replica_restarts=2
    )
    async with AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(world.serving())
        fleet = await stack.enter_async_context(Fleet(settings, TOKEN, say=world.say))
        ground = Ground(world, fleet, settings)
        stack.push_async_callback(ground.started.stop)
        yield ground


@asynccontextmanager
async def tended(ground: Ground) -> AsyncIterator[asyncio.Task[None]]:
    await ground.fleet.publish(ground.world, PolicyVersion(0, 0))
    tasks = [asyncio.create_task(ground.started.tend()), asyncio.create_task(ground.fleet.tend())]
    try:
        yield tasks[0]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_the_first_replicas_are_there_when_start_returns(ground) -> None:
    await ground.started.start(2)
    assert [(r.state, r.is_started) for r in ground.fleet.membership.replicas] == [(State.SYNCING, True)] * 2
    assert ground.started.count == 2 and ground.started.state() == []


async def test_a_first_start_that_fails_is_a_mistake_of_the_settings_and_ends_the_run(ground) -> None:
    ground.queue = [ground.world.servers[0], None]
    with pytest.raises(ServiceError, match="no such model"):
        await ground.started.start(2)
    assert all(host.is_stopped for host in ground.hosts) and ground.started.count == 0


async def test_one_that_died_is_ended_and_another_takes_its_place(ground) -> None:
    await ground.started.start(2)
    async with tended(ground):
        await until(lambda: ground.ready() == [0, 1])
        ground.hosts[0].is_dead = True
        await until(lambda: ground.ready() == [1, 2])
        assert ground.hosts[0].is_stopped and ground.fleet.membership.counts["losses"] == 1
        assert any("started again" in line and "exit code -9" in line for line in ground.world.said)


async def test_one_that_the_fleet_lost_is_ended_and_started_again(ground) -> None:
    await ground.started.start(2)
    async with tended(ground):
        await until(lambda: ground.ready() == [0, 1])
        ground.world.servers[1].statuses["is_paused"] = 500
        await until(lambda: ground.ready() == [0, 2])
        assert ground.hosts[1].is_stopped


async def test_scaling_out_starts_more_and_scaling_in_lets_the_last_finish(ground) -> None:
    await ground.started.start(1)
    async with tended(ground):
        ground.started.resize(3)
        assert [row["state"] for row in ground.started.state()] == ["starting", "starting"]
        await until(lambda: ground.ready() == [0, 1, 2])
        ground.started.resize(1)
        await until(lambda: ground.ready() == [0] and all(host.is_stopped for host in ground.hosts[1:]))
        assert ground.fleet.membership.counts["leaves"] == 2 and not ground.hosts[0].is_stopped


async def test_one_that_dies_again_and_again_is_given_up_and_the_run_goes_on_with_the_others(ground) -> None:
    await ground.started.start(1)
    async with tended(ground) as tending:
        ground.queue = [None] * 9
        ground.started.resize(2)
        await until(lambda: ground.started.count == 1)
        assert any("died 3 times in a row and is given up" in line for line in ground.world.said)
        assert not tending.done() and ground.ready() == [0]


async def test_where_it_was_the_only_one_the_run_ends_with_its_last_words(ground) -> None:
    await ground.started.start(1)
    async with tended(ground) as tending:
        await until(lambda: ground.ready() == [0])
        ground.queue = [None] * 9
        ground.hosts[0].is_dead = True
        with pytest.raises(ServiceError, match=r"no such model.* It died 3 times in a row"):
            async with asyncio.timeout(10):
                await tending


async def test_one_that_is_let_go_while_it_starts_is_ended(ground) -> None:
    await ground.started.start(1)
    never = asyncio.Event()
    async with tended(ground):
        hosts = len(ground.hosts)

        async def hang(self: Host) -> str:
            await never.wait()
            return ""

        ground_place, Host.start = Host.start, hang  # type: ignore[method-assign]  # for the one that comes
        try:
            ground.started.resize(2)
            await until(lambda: len(ground.hosts) > hosts)
            ground.started.resize(1)
            await until(lambda: ground.hosts[-1].is_stopped)
        finally:
            Host.start = ground_place  # type: ignore[method-assign]  # as it was


async def test_a_host_that_does_not_end_is_said_and_not_waited_for(ground, monkeypatch) -> None:
    monkeypatch.setattr(started_module, "STOP_TIMEOUT_S", 0.05)
    await ground.started.start(1)

    async def hang() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        raise asyncio.CancelledError

    ground.hosts[0].stop = hang
    await ground.started.stop()
    assert any("did not end within" in line for line in ground.world.said)


async def test_what_a_dead_driver_left_is_taken_in_and_no_other_is_started_for_it(ground) -> None:
    left = Host(ground.world.servers[2])
    ground.started = StartedReplicas(ground.settings, ground.fleet, ground.place, ground.world.say, {1: left})
    await ground.started.start(2)
    async with tended(ground):
        await until(lambda: ground.ready() == [0, 2])
    assert ground.started.num_adopted == 1 and len(ground.hosts) == 1
    assert f"adopted: {left.server.url}" in ground.world.said
    assert "gate 2" not in ground.world.events and ground.world.servers[2].queries[0]["mode"] == "abort"
    await ground.started.stop()
    assert left.is_stopped and ground.hosts[0].is_stopped


@pytest.mark.parametrize("fault", ["its server has ended", "its engine does not answer"])
async def test_what_is_not_fit_any_more_is_ended_and_another_started(ground, fault: str) -> None:
    left = Host(None if fault == "its server has ended" else ground.world.servers[2])
    ground.world.servers[2].statuses["pause"] = 500
    ground.started = StartedReplicas(ground.settings, ground.fleet, ground.place, ground.world.say, {0: left})
    await ground.started.start(1)
    assert ground.started.num_adopted == 0 and left.is_stopped and len(ground.hosts) == 1
    assert any("replica-0 that a dead driver left is not used: " in line for line in ground.world.said)
    assert [replica.url for replica in ground.fleet.membership.replicas] == [ground.world.servers[0].url]
    await ground.started.stop()


async def test_what_was_claimed_is_ended_also_where_the_start_was_broken_off(ground) -> None:
    left = [Host(server) for server in ground.world.servers[:2]]
    ground.started = StartedReplicas(
        ground.settings, ground.fleet, ground.place, ground.world.say, dict(enumerate(left))
    )
    await ground.started.stop()
    assert all(host.is_stopped for host in left) and not any(host.num_starts for host in left)


async def test_one_whose_end_was_under_way_is_ended_with_the_run(ground) -> None:
    await ground.started.start(2)
    going, goes = ground.hosts[1], asyncio.Event()
    stop = going.stop

    async def slowly() -> None:
        goes.set()
        going.stop = stop
        await asyncio.Event().wait()

    going.stop = slowly
    ground.started.resize(1)
    await goes.wait()
    await ground.started.stop()
    assert going.is_stopped
