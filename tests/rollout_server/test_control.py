"""The fleet's control API and `python -m rollout_server.scale`, over a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import aiohttp
import pytest

from rollout_server.config import RolloutSettings
from rollout_server.control import ControlApi, served
from rollout_server.fleet import Fleet
from rollout_server.scale import (
    ADDRESS_FILE,
    CHECKSUMS,
    FleetClient,
    ScaleSettings,
    carry_out,
    compared,
    lines,
    main,
)
from tests.rollout_server.world import TOKEN, World
from wire.errors import ConfigError, ServiceError, Unauthorized
from wire.generation import PolicyVersion
from wire.scaling import take_command


class Started:
    """The run's own replicas, as far as the API asks for them."""

    count = 2

    def resize(self, count: int) -> None:
        self.count = count

    def state(self) -> list[dict[str, object]]:
        return [{"url": "replica-1", "state": "starting", "started": True, "reason": ""}]


class Ground:
    def __init__(self, world: World, fleet: Fleet, started: Started, client: FleetClient, url: str) -> None:
        self.world, self.fleet, self.started, self.client, self.url = world, fleet, started, client, url


@pytest.fixture
async def ground() -> AsyncIterator[Ground]:
    world, settings = World(), RolloutSettings(device="cpu", probe_timeout_s=0.5, drain_timeout_s=0.2)
    async with AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(world.serving())
        fleet = await stack.enter_async_context(Fleet(settings, TOKEN))
        await fleet.add(world.servers[0].url, is_started=True)
        await fleet.publish(world, PolicyVersion(0, 7))
        started = Started()
        url = await stack.enter_async_context(served(ControlApi(fleet, started, TOKEN), settings))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        yield Ground(world, fleet, started, FleetClient(url, TOKEN, session), url)


async def test_status_shows_each_replica_and_those_that_start(ground) -> None:
    table = lines(await carry_out(ground.client, ["status"]))
    assert table[0].startswith(ground.world.servers[0].url) and "ready" in table[0] and "version 0.7" in table[0]
    assert table[1].startswith("replica-1") and "starting" in table[1]
    assert table[-1] == "2 of the run's own, epoch 1, live version 0.7; 1 joins"


@pytest.mark.parametrize(("word", "count"), [("5", 5), ("+1", 3), ("-2", 0)])
async def test_a_number_scales_the_runs_own(ground, word: str, count: int) -> None:
    assert (await carry_out(ground.client, [word]))["count"] == count == ground.started.count


async def test_a_replica_joins_and_leaves_by_its_url(ground) -> None:
    url = ground.world.servers[1].url
    state = await carry_out(ground.client, ["add", url])
    assert [row["state"] for row in state["replicas"] if row["url"] == url] == ["syncing"]
    await carry_out(ground.client, ["remove", url])
    async with asyncio.timeout(5):
        while ground.fleet.membership.find(url) is not None:
            await asyncio.sleep(0.01)


async def test_what_cannot_be_done_is_refused_with_the_value_and_the_remedy(ground) -> None:
    with pytest.raises(ConfigError, match=r"http://x:1 is no replica of this fleet"):
        await carry_out(ground.client, ["remove", "http://x:1"])
    with pytest.raises(ConfigError, match=r"is of the run's own: give their number"):
        await carry_out(ground.client, ["remove", ground.world.servers[0].url])
    with pytest.raises(ServiceError, match=r"http://127.0.0.1:1/get_world_size"):
        await carry_out(ground.client, ["add", "http://127.0.0.1:1"])
    with pytest.raises(ConfigError, match=r"-3 of 2 servers leaves fewer than none"):
        await carry_out(ground.client, ["-3"])
    for body in ({"count": -1}, {"count": True}, {"count": "3"}, {}, []):
        with pytest.raises(ConfigError, match=r"must be"):
            await ground.client.call("PUT", "/v1/replicas/count", json=body)
    with pytest.raises(ConfigError, match=r"url None must start with http"):
        await ground.client.call("POST", "/v1/replicas", json={"address": "x"})


async def test_checksums_say_whether_all_replicas_hold_the_same(ground) -> None:
    command, _ = take_command(["checksums", "--config", "f"], CHECKSUMS)
    table = lines(await carry_out(ground.client, command))
    assert table == [f"{ground.world.servers[0].url:<32} the same", "1 replicas, 1 tensors"]
    differing = compared({"http://a": {"w": "1", "v": "2"}, "http://b": {"w": "1", "v": "3", "u": "4"}})
    assert differing[1].endswith("differs in u, v")


async def test_every_route_but_health_asks_for_the_token(ground) -> None:
    async with aiohttp.ClientSession() as session:
        stranger = FleetClient(ground.url, "wrong", session)
        for method, route in (("GET", "/v1/replicas"), ("PUT", "/v1/replicas/count"), ("GET", "/nowhere")):
            with pytest.raises(Unauthorized, match="refuses the token"):
                await stranger.call(method, route, json={"count": 9})
        assert await stranger.call("GET", "/health") == {}
    assert ground.started.count == 2


async def test_a_run_that_is_over_is_named(ground) -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(ServiceError, match=r"http://127.0.0.1:1/v1/replicas: .*does the run still go on\?"):
            await FleetClient("http://127.0.0.1:1", TOKEN, session).call("GET", "/v1/replicas")


async def test_a_port_that_is_taken_is_said_with_the_remedy(ground) -> None:
    port = int(ground.url.rpartition(":")[2])
    with pytest.raises(ConfigError, match=rf"fleet_port {port} cannot be listened on: .*port 0 for a free one"):
        async with served(
            ControlApi(ground.fleet, ground.started, TOKEN), RolloutSettings(device="cpu", fleet_port=port)
        ):
            pass


def test_the_address_is_read_from_the_runs_folder(tmp_path) -> None:
    (tmp_path / ADDRESS_FILE).write_text("http://127.0.0.1:8200\n")
    assert ScaleSettings(device="cpu", output_dir=str(tmp_path)).address() == "http://127.0.0.1:8200"
    assert ScaleSettings(device="cpu", fleet_url="http://h:1/").address() == "http://h:1"
    with pytest.raises(ConfigError, match=r"no run has its fleet's address in .*: give output_dir, or fleet_url"):
        ScaleSettings(device="cpu", output_dir=str(tmp_path / "none")).address()


def test_without_a_command_those_there_are_are_named() -> None:
    with pytest.raises(ConfigError, match="give a number of servers"):
        main(["--fleet_url", "http://127.0.0.1:1"])
