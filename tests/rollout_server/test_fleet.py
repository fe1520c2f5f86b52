"""The real fleet against fakes of vLLM's control routes; the learner is a fake sender."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from rollout_server.fleet import Fleet
from wire.errors import ServiceError, Unauthorized
from wire.generation import PolicyVersion

TOKEN = "correct-horse"
INDEX = web.AppKey("index", int)
V0, V1, V2 = (PolicyVersion(0, step) for step in range(3))


class World:
    """Two replicas and the learner; `events` is what reached any of them, in order."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.queries: list[dict[str, str]] = []
        self.statuses: dict[str, int] = {}  # route -> what it answers, where not 200
        self.hanging: set[str] = set()
        self.labels = ["default", "default"]
        self.send_error: Exception | None = None
        self.servers: list[TestServer] = []

    async def start(self) -> None:
        for index in range(2):
            app = web.Application()
            app[INDEX] = index
            app.router.add_route("*", "/{route}", self.answer)
            self.servers.append(TestServer(app))
            await self.servers[-1].start_server()

    @property
    def urls(self) -> list[str]:
        return [str(server.make_url("")).rstrip("/") for server in self.servers]

    async def answer(self, request: web.Request) -> web.Response:
        route, index = request.match_info["route"], request.app[INDEX]
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.json_response({}, status=401)
        self.events.append(f"{route} {index}")
        if route in self.hanging:
            await asyncio.sleep(60)
        if route in self.statuses:
            return web.Response(status=self.statuses[route], text="engine is dead")
        if route == "pause":
            self.queries.append(dict(request.query))
        if route == "update_weight_version":
            self.labels[index] = (await request.json())["new_version"]
        return web.json_response({"world_size": index + 1, "weight_version": self.labels[index]})

    # The learner.

    async def open_transfer(self, members: Sequence[tuple[str, int]]) -> None:
        self.events.append(f"open {[size for _, size in members]}")
        assert [url for url, _ in members] == self.urls

    async def send_weights(self, version: PolicyVersion) -> None:
        self.events.append(f"send {version.label}")
        if self.send_error is not None:
            raise self.send_error

    def happened(self) -> list[str]:
        """Events since the last call; the order of the two replicas within a stage is nobody's business."""
        stages: list[str] = []
        for event in self.events:
            stage = event if event.startswith(("open", "send")) else event.split()[0]
            if not stages or stages[-1] != stage:
                stages.append(stage)
        self.events.clear()
        return stages


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    await world.start()
    yield world
    for server in world.servers:
        await server.close()


def fleet_of(world: World, *, token: str = TOKEN, timeout_s: float = 10.0, skip_push: bool = False) -> Fleet:
    return Fleet(world.urls, token, timeout_s, skip_push=skip_push)


async def test_a_probe_makes_members_that_are_not_ready(world) -> None:
    async with fleet_of(world) as fleet:
        assert fleet.replicas == []
        await fleet.probe()
        assert [(replica.url, replica.world_size) for replica in fleet.replicas] == [
            (world.urls[0], 1), (world.urls[1], 2)
        ]  # fmt: skip
        assert fleet.ready() == []


async def test_a_push_pauses_sends_and_resumes_and_the_group_is_opened_only_for_new_members(world) -> None:
    async with fleet_of(world) as fleet:
        await fleet.probe()
        world.happened()
        await fleet.publish(world, V0)
        first = world.happened()
        assert sorted(first) == sorted(["open [1, 2]", "pause", "send 0.0", "resume"])
        assert first.index("open [1, 2]") < first.index("send 0.0")
        assert first[-2:] == ["send 0.0", "resume"] and first.index("pause") < first.index("send 0.0")
        assert fleet.ready() == world.urls
        await fleet.publish(world, V1)
        assert world.happened() == ["pause", "send 0.1", "resume"]
        assert [replica.version for replica in fleet.replicas] == [V1, V1]
        fleet.replicas[1].world_size = 4
        await fleet.publish(world, V2)
        assert "open [1, 4]" in world.happened()


async def test_a_pause_keeps_the_requests_and_the_cache(world) -> None:
    async with fleet_of(world) as fleet:
        await fleet.probe()
        await fleet.publish(world, V0)
    assert world.queries == [{"mode": "keep", "clear_cache": "false"}] * 2


async def test_after_a_failed_send_all_resume_and_nobody_is_known_to_hold_anything(world) -> None:
    async with fleet_of(world) as fleet:
        await fleet.probe()
        await fleet.publish(world, V0)
        world.happened()
        world.send_error = ServiceError("learner rank 0: send_weights: a worker is gone")
        with pytest.raises(ServiceError, match="a worker is gone"):
            await fleet.publish(world, V1)
        assert world.happened() == ["pause", "send 0.1", "resume"]
        assert fleet.ready() == []
        world.send_error = None
        await fleet.publish(world, V1)
        assert "open [1, 2]" in world.happened()  # the old group is not trusted
        assert fleet.ready() == world.urls


async def test_a_pause_that_fails_sends_nothing_and_resumes(world) -> None:
    async with fleet_of(world) as fleet:
        await fleet.probe()
        world.statuses["pause"] = 500
        with pytest.raises(ServiceError, match=r"/pause answered HTTP 500: engine is dead"):
            await fleet.publish(world, V0)
    assert not any(event.startswith("send") for event in world.events)
    assert {"resume 0", "resume 1"} <= set(world.events)


async def test_a_cancelled_push_resumes_the_replicas(world) -> None:
    async def never(version: PolicyVersion) -> None:
        world.events.append("send")
        await asyncio.sleep(60)

    world.send_weights = never
    async with fleet_of(world) as fleet:
        await fleet.probe()
        task = asyncio.create_task(fleet.publish(world, V0))
        while "send" not in world.events:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert {"resume 0", "resume 1"} <= set(world.events) and fleet.ready() == []


async def test_only_those_that_hold_the_newest_version_are_ready(world) -> None:
    async with fleet_of(world) as fleet:
        await fleet.probe()
        fleet.replicas[0].version, fleet.replicas[1].version = V2, PolicyVersion(1, 0)
        assert fleet.ready() == [world.urls[1]]


async def test_skip_push_moves_only_the_label_after_a_first_real_push(world) -> None:
    async with fleet_of(world, skip_push=True) as fleet:
        await fleet.probe()
        world.happened()
        await fleet.publish(world, V0)
        assert "send 0.0" in world.happened()
        await fleet.publish(world, V1)
        assert world.happened() == ["update_weight_version"]
        assert await fleet.versions() == ["0.1", "0.1"] and fleet.ready() == world.urls


async def test_a_refused_token_is_said_with_the_url(world) -> None:
    async with fleet_of(world, token="wrong") as fleet:
        with pytest.raises(Unauthorized, match=f"{world.urls[0]}/get_world_size refuses the token"):
            await fleet.probe()


async def test_a_missed_deadline_names_the_url(world) -> None:
    async with fleet_of(world, timeout_s=0.2) as fleet:
        await fleet.probe()
        world.hanging.add("pause")
        with pytest.raises(ServiceError, match=r"http://127\.0\.0\.1:\d+/pause did not answer within"):
            await fleet.publish(world, V0)


async def test_a_replica_that_is_not_there_is_named() -> None:
    url = f"http://127.0.0.1:{unused_port()}"
    async with Fleet([url], TOKEN, 5.0) as fleet:
        with pytest.raises(ServiceError, match=f"{url}/get_world_size: "):
            await fleet.probe()
