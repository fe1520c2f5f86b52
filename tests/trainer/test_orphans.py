"""What outlives its driver is shown, and ended where the driver is dead."""

from __future__ import annotations

import pytest

from tests.wire.fake_cluster import FakeCluster, plan
from trainer.orphans import command_in, lines, stop
from wire.claim import LEASE_S, Owner
from wire.errors import ConfigError

DEAD, LIVING, ME = Owner("/runs/a", "1", "01", 100.0), Owner("/runs/b", "2", "02", 100.0), Owner("/", "3", "03", 100.0)


@pytest.fixture
async def cluster() -> FakeCluster:
    cluster = FakeCluster()
    cluster.dead.add(DEAD.life)
    for number, (kind, owner) in enumerate([("replica", DEAD), ("replica", LIVING), ("reward-service", DEAD)]):
        await cluster.ask(cluster.launch(plan(number, kind=kind), owner), "start", owner.life)
    return cluster


async def test_each_is_shown_with_its_run_and_its_end(cluster: FakeCluster) -> None:
    cluster.clock.now = 8.0
    found = [" ".join(line.split()) for line in await lines(cluster)]
    assert found == [
        "replica-0-0 http://replica-0-0 /runs/a: its driver has died, and it ends in 92 s",
        "replica-1-1 http://replica-1-1 /runs/b: its driver lives",
        "reward-service-2-2 http://reward-service-2-2 /runs/a: its driver has died, and it ends in 92 s",
    ]
    cluster.clock.now = 20.0
    assert "silent for 20 s, and it ends in 80 s" in (await lines(cluster))[1]


async def test_those_of_dead_drivers_are_ended_and_a_living_ones_are_not(cluster: FakeCluster) -> None:
    told = await stop(cluster, ME)
    assert [line.rpartition(": ")[2] for line in told] == ["ended", "left, for its driver may live", "ended"]
    assert [actor.is_killed for actor in cluster.actors.values()] == [True, False, True]
    assert [actor.host.process.is_ended for actor in cluster.actors.values()] == [True, False, True]
    cluster.clock.now = LEASE_S + 1.0
    assert [line.rpartition(": ")[2] for line in await stop(cluster, ME)] == ["ended"]
    assert await stop(cluster, ME) == await lines(cluster) == ["none"]


def test_its_command_names_a_cluster() -> None:
    assert command_in(["--ray_address", "auto"]) == ("auto", False)
    assert command_in(["stop", "--ray_address", "a:1"]) == ("a:1", True)
    with pytest.raises(ConfigError, match="ray_address names no cluster"):
        command_in(["stop"])
