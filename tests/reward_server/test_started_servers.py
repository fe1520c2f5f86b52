"""The service's own GenRM servers here and elsewhere: they come, die, move and go while calls are under way."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from reward_server import pool as pool_module
from reward_server import remote
from reward_server.config import RewardSettings
from reward_server.pool import Pool
from reward_server.started import StartedServers
from reward_server.startup import Startup
from tests.reward_server.test_pool import FakeServer, ask, pool_of
from wire.errors import ConfigError, ServiceError

READY = Startup("", 3.0, 2.0)


class Node:
    """Has room for one server once `has_room` is set; what was asked of it is in `log`."""

    def __init__(self, log: list[str], name: str, work_s: float = 0.02) -> None:
        self.name, self.log, self.server = name, log, FakeServer(work_s)
        self.server.url = "http://nowhere"  # until it has started
        self.has_room = asyncio.Event()
        self.has_room.set()
        self.ends_with: Exception | None = None


class FakeHost:
    """A life on a node."""

    def __init__(self, node: Node, say: remote.Say) -> None:
        self._node, self._say = node, say

    async def begin(self) -> str:
        node = self._node
        if not node.has_room.is_set():
            self._say("no room yet for judge-0: missing: reward (0 of 1 free)")
        await node.has_room.wait()
        if isinstance(node.ends_with, ConfigError):
            raise node.ends_with
        await node.server.start()
        node.log.append(f"{node.name} begins")
        return str(node.server.url)

    async def look(self) -> Startup:
        if self._node.ends_with is not None:
            raise self._node.ends_with
        return READY

    async def stop(self) -> None:
        await self._node.server.server.close()
        self._node.log.append(f"{self._node.name} gave its place back")


class Ground:
    """A pool with one joined server, and nodes for those that are placed, in their order."""

    def __init__(self, pool: Pool, nodes: list[Node]) -> None:
        self.pool = pool
        lives = iter(nodes)
        settings = RewardSettings(judge_servers=0, judge_urls=["http://127.0.0.1:1"], judge_timeout_s=5.0)
        self.started = StartedServers(settings, pool, place=lambda _, say: FakeHost(next(lives), say))

    async def until(self, is_so: Any) -> None:
        async with asyncio.timeout(10):
            while not is_so():
                await self.started.tend()
                await asyncio.sleep(0.01)


@asynccontextmanager
async def ground(*nodes: Node) -> AsyncIterator[tuple[Ground, FakeServer]]:
    base = FakeServer(0.02)
    async with pool_of(base) as pool:
        found = Ground(pool, list(nodes))
        try:
            yield found, base
        finally:
            await found.started.stop()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "HEALTH_INTERVAL_S", 0.05)
    monkeypatch.setattr(remote, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(remote, "pause_after", lambda _: 0.05)


async def test_while_servers_come_and_go_every_call_is_asked_once_and_their_places_are_given_back() -> None:
    log: list[str] = []
    nodes = [Node(log, "one", work_s=0.3), Node(log, "two", work_s=0.3)]
    async with ground(*nodes) as (here, base):
        calls = [asyncio.create_task(ask(here.pool, n, affinity=n)) for n in range(80)]
        here.started.resize(2)
        await here.until(lambda: here.pool.num_ready == 3 and all(node.server.in_flight for node in nodes))
        here.started.resize(0)  # with calls in flight at both
        assert here.started.count == 0
        await here.until(lambda: len(log) == 4)
        await asyncio.gather(*calls)
        assert [server.url for server in here.pool.servers] == [base.url]
    asked = Counter(n for server in (base, *(node.server for node in nodes)) for n in server.asked)
    assert asked == dict.fromkeys(range(80), 1)
    assert sorted(log[2:]) == ["one gave its place back", "two gave its place back"]
    assert all(call.attempts == 1 and not call.lost_with for call, _ in (task.result() for task in calls))


async def test_one_that_dies_lives_again_on_another_node_and_the_pool_knows_its_new_url() -> None:
    log: list[str] = []
    first, second = Node(log, "one"), Node(log, "two")
    async with ground(first, second) as (here, base):
        here.started.resize(1)
        await here.until(lambda: here.pool.num_ready == 2)
        assert here.started.owns(first.server.url)
        first.ends_with = ServiceError("judge-0 ended with exit code -9.")
        await here.until(lambda: here.started.owns(second.server.url) and here.pool.num_ready == 2)
        assert {server.url for server in here.pool.servers} == {base.url, second.server.url}
    assert log == ["one begins", "one gave its place back", "two begins", "two gave its place back"]


async def test_one_without_a_node_says_what_the_cluster_lacks_and_can_be_taken_back() -> None:
    log: list[str] = []
    node = Node(log, "one")
    node.has_room.clear()
    async with ground(node) as (here, _):
        here.started.resize(1)
        await here.until(lambda: "missing" in here.started.unplaced[0][1].doing)
        ((name, startup),) = here.started.unplaced
        assert (name, startup.load_s) == ("judge-0", None)
        assert startup.doing == "waits for a node: no room yet for judge-0: missing: reward (0 of 1 free)"
        here.started.resize(0)
        await here.until(lambda: log == ["one gave its place back"])
        assert here.started.unplaced == []


async def test_one_whose_node_cannot_serve_it_is_given_up_and_the_service_goes_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log: list[str] = []
    node = Node(log, "one")
    node.ends_with = ConfigError("judge_model_name_or_path './judge' is neither a folder nor a Hub id")
    async with ground(node) as (here, base):
        here.started.resize(1)
        await here.until(lambda: here.started.count == 0)
        assert "nor a Hub id The service goes on without it." in capsys.readouterr().err
        assert [server.url for server in here.pool.servers] == [base.url]
    assert log == ["one gave its place back"]


async def test_the_last_one_that_dies_again_and_again_ends_the_service_with_its_last_words() -> None:
    log: list[str] = []
    nodes = [Node(log, str(n)) for n in range(5)]
    for node in nodes:
        node.ends_with = ServiceError("judge-0 ended with exit code 1.")
    async with ground(*nodes) as (here, base):
        await here.pool.remove(base.url, 0.0)
        here.started.resize(1)
        with pytest.raises(ServiceError, match=r"ended with exit code 1\. judge-0 died 5 times in a row"):
            await here.until(lambda: False)
    assert len(log) == 10


async def test_the_first_servers_are_on_the_services_own_host() -> None:
    made: list[int] = []

    def make(_: RewardSettings, index: int) -> Any:
        made.append(index)
        raise ConfigError("judge-0 needs a GPU of its own")

    async with ground() as (here, _):
        settings = RewardSettings(judge_servers=1)
        started = StartedServers(settings, here.pool, make, place=lambda _, say: FakeHost(Node([], "one"), say))
        with pytest.raises(ConfigError, match="needs a GPU"):
            started.resize(2)
        assert made == [0] and started.count == 0
