"""Replicas that say how loaded they are, and those that do not, over loopback sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

import rollout_server.rooms
from rollout_server.membership import Replica, State
from rollout_server.places import Places
from rollout_server.rooms import Rooms
from tests.rollout_server.roster import Roster
from wire.membership import BOOT_HEADER
from wire.token import auth_headers

TOKEN = "correct-horse"
MOST, LEAST = 20, 4


class FakeReplica:
    """Says that it runs 10 requests while `waiting` more wait, unless `page` is given."""

    def __init__(self) -> None:
        self.waiting, self.page, self.status, self.delay_s = 0, "", 200, 0.0
        self.asked: list[dict[str, str]] = []
        app = web.Application()
        app.router.add_get("/metrics", self.metrics)
        self.server = TestServer(app)

    @property
    def url(self) -> str:
        return str(self.server.make_url("")).rstrip("/")

    async def metrics(self, request: web.Request) -> web.Response:
        self.asked.append(dict(request.headers))
        await asyncio.sleep(self.delay_s)
        values = {"num_requests_running": 10, "num_requests_waiting": self.waiting}
        values |= {"num_preemptions_total": 0, "kv_cache_usage_perc": 0.5}
        page = "".join(f'vllm:{name}{{engine="0"}} {value}\n' for name, value in values.items())
        return web.Response(text=self.page or page, status=self.status)


@pytest.fixture
async def fakes() -> AsyncIterator[list[FakeReplica]]:
    """Two of them."""
    made = [FakeReplica(), FakeReplica()]
    for fake in made:
        await fake.server.start_server()
    yield made
    for fake in made:
        await fake.server.close()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """As the client's own."""
    async with aiohttp.ClientSession(headers=auth_headers(TOKEN)) as opened:
        yield opened


class Ground:
    """Both replicas with 20 completions to write each, and the rooms that follow them."""

    def __init__(self, session: aiohttp.ClientSession, *fakes: FakeReplica) -> None:
        self.roster = Roster()
        self.replicas = [self.roster.add(fake.url, f"boot-{fake.url}") for fake in fakes]
        self.places = Places(MOST)
        self.rooms = Rooms(session, self.roster, self.places, least=LEAST, most=MOST)
        self.writing = ExitStack()
        for replica in self.replicas:
            futures = [asyncio.get_running_loop().create_future() for _ in range(MOST)]
            self.writing.enter_context(self.places.held(replica, futures))

    @property
    def sizes(self) -> list[float]:
        return [self.places.room(replica) for replica in self.replicas]


async def test_each_replica_has_the_room_that_its_own_figures_give_and_is_asked_with_token_and_boot(
    fakes: list[FakeReplica], session: aiohttp.ClientSession
) -> None:
    ground = Ground(session, *fakes)
    fakes[0].waiting = 10
    for expected in ([20, 20], [16, 20]):
        await ground.rooms.look()
        assert ground.sizes == expected
    (first, _), asked = ground.replicas, fakes[0].asked[0]
    assert (asked["Authorization"], asked[BOOT_HEADER]) == (f"Bearer {TOKEN}", first.boot_id)
    assert len(fakes[0].asked) == len(fakes[1].asked) == 2
    assert (first.room, ground.replicas[1].room) == (16, 20)


@pytest.mark.parametrize("how", ["status", "page", "gone", "silent"])
async def test_a_replica_that_does_not_say_keeps_its_room_and_does_not_hold_up_the_others(
    how: str, fakes: list[FakeReplica], session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout_server.rooms, "LOOK_TIMEOUT_S", 0.2 if how == "silent" else 10.0)
    ground = Ground(session, *fakes)
    for fake in fakes:
        fake.waiting = 10
    for _ in range(2):
        await ground.rooms.look()
    assert ground.sizes == [16, 16]
    if how == "gone":
        ground.replicas[0].url = f"http://127.0.0.1:{unused_port()}"
    fakes[0].status = 404 if how == "status" else 200
    fakes[0].page = "another program's page\n" if how == "page" else ""
    fakes[0].delay_s = 60.0 if how == "silent" else 0.0
    for fake in fakes:
        fake.waiting = 0
    await ground.rooms.look()
    assert ground.sizes == [16, 17]


async def test_only_those_that_are_ready_are_asked_and_one_that_was_lost_comes_back_with_all_its_room(
    fakes: list[FakeReplica], session: aiohttp.ClientSession
) -> None:
    ground = Ground(session, fakes[0])
    fakes[0].waiting = 10
    for _ in range(2):
        await ground.rooms.look()
    (replica,) = ground.replicas
    replica.state = State.SYNCING
    await ground.rooms.look()
    assert len(fakes[0].asked) == 2 and ground.sizes == [16]
    again = ground.roster.add(fakes[0].url, "another boot")
    await ground.rooms.look()
    assert ground.places.room(again) == MOST


async def test_it_looks_until_it_is_cancelled(
    fakes: list[FakeReplica], session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout_server.rooms, "LOOK_INTERVAL_S", 0.01)
    following = asyncio.create_task(Ground(session, *fakes).rooms.follow())
    async with asyncio.timeout(10):
        while min(len(fake.asked) for fake in fakes) < 3:
            assert not following.done()
            await asyncio.sleep(0.01)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert following.cancelled()


def test_a_new_replica_has_no_room_of_its_own() -> None:
    assert Places(MOST).room(Replica("http://new")) == MOST
