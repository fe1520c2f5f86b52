"""No deadline is missing: each remote call of the project meets a peer that is silent, and ends by itself.

A peer accepts the connection and never answers. What waits for it must end the wait within its deadline and name the
peer. The tables below hold every call over HTTP; a public call that is in none of them fails the last tests of this
module. Calls to actors are in test_actor_deadlines.py.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest

import reward_server.client
import reward_server.figures
import reward_server.judge
import reward_server.pool
import rollout_server.scale
import rollout_server.started
import trainer.joined
from reward_server import scale as reward_scale
from reward_server.channel import Channel
from reward_server.client import RewardClient
from reward_server.config import RewardSettings
from reward_server.figures import read_figures
from reward_server.instruments import Instruments
from reward_server.judge import Judge
from reward_server.peer import Peer, open_session
from reward_server.pool import Pool, PooledCall
from reward_server.prefix_cache import PrefixCache
from rollout_server import scale as rollout_scale
from rollout_server.client import RolloutClient, Sampling
from rollout_server.control_routes import CallFailed, ControlRoutes
from rollout_server.membership import Replica, State
from rollout_server.scale import FleetClient
from rollout_server.waiting import Deadline
from tests.contract.silence import DEADLINE_S, in_time, public_calls, silent_server
from trainer.batch import Sample
from trainer.fleet_sync import FleetSyncClient
from wire.errors import ConfigError, ServiceError
from wire.generation import PolicyVersion
from wire.judgement import Message
from wire.membership import Member, Outcome
from wire.process import ServerProcess

TOKEN = "correct-horse"
V1 = PolicyVersion(0, 1)
TALK = (Message(role="user", content="sea?"),)
SAMPLE = Sample((1,), (2,), (-0.5,), 1.0)


# --- the driver to a replica

CONTROL: dict[str, tuple[str, Callable[[ControlRoutes, Replica], Awaitable[Any]]]] = {
    "meet": ("get_world_size", lambda routes, replica: routes.meet(replica.url, DEADLINE_S)),
    "meet, its second": ("is_paused", lambda routes, replica: routes.meet(replica.url, DEADLINE_S)),
    "empty": ("gate", lambda routes, replica: routes.empty(replica.url, DEADLINE_S)),
    "empty, its second": ("pause", lambda routes, replica: routes.empty(replica.url, DEADLINE_S)),
    "empty, its third": ("resume", lambda routes, replica: routes.empty(replica.url, DEADLINE_S)),
    "probe": ("is_paused", lambda routes, replica: routes.probe(replica, DEADLINE_S)),
    "pause": ("pause", lambda routes, replica: routes.pause(replica, DEADLINE_S, keep=True)),
    "resume": ("resume", lambda routes, replica: routes.resume(replica, DEADLINE_S)),
    "relabel": ("update_weight_version", lambda routes, replica: routes.relabel(replica, "0.1", DEADLINE_S)),
    "version": ("weight_info", lambda routes, replica: routes.version(replica, DEADLINE_S)),
    "checksums": ("weight_checker", lambda routes, replica: routes.checksums(replica, DEADLINE_S)),
}


@pytest.mark.parametrize("first_words", [b"", b'{"world_'], ids=["before its headers", "in its answer"])
@pytest.mark.parametrize("name", CONTROL)
async def test_a_control_call_ends_by_its_deadline_and_names_the_route(name: str, first_words: bytes) -> None:
    route, call = CONTROL[name]
    async with silent_server(route, first_words=first_words) as url, ControlRoutes(TOKEN) as routes:
        with pytest.raises(CallFailed, match=f"{url}/{route} did not answer within 0.3 s") as failed:
            await in_time(call(routes, Replica(url)))
    assert failed.value.outcome is Outcome.SILENT


class OneMember:
    """A fleet of one replica."""

    def __init__(self, url: str) -> None:
        self.replicas = [Replica(url, state=State.READY)]

    def ready(self) -> Sequence[Replica]:
        return self.replicas

    async def changed(self, timeout_s: float) -> None:
        await asyncio.sleep(timeout_s)

    def suspect(self, replica: Replica) -> None:
        pass

    def count(self, name: str, number: int = 1) -> None:
        pass


@pytest.mark.parametrize(
    "first_words", [b"", b'data: {"choices": []}\n\n'], ids=["before its headers", "in its stream"]
)
async def test_a_prompt_ends_by_its_deadline_and_names_the_replica(first_words: bytes) -> None:
    async with silent_server(first_words=first_words) as url:
        client = RolloutClient(OneMember(url), TOKEN, Sampling(4, 1.0, (2,)), DEADLINE_S)
        async with client, client.generate([1], 2, seed=1, salt=str) as futures:
            with pytest.raises(ServiceError, match=f"not answered within 0 s; last: {url}: it has not finished"):
                await in_time(futures[0])


# --- the learner to a replica

TRANSFER = {
    "init_weight_transfer_engine": lambda client: client.init_weight_transfer_engine({"rank_offset": 1}),
    "start_weight_update": lambda client: client.update_weights({}),
    "update_weights": lambda client: client.update_weights({}),
    "finish_weight_update": lambda client: client.update_weights({}),
}


@pytest.mark.parametrize("route", TRANSFER)
async def test_a_part_of_a_transfer_ends_by_its_deadline_and_names_the_route(route: str) -> None:
    async with silent_server(route) as url:
        client = FleetSyncClient([Member(url, 1, "")], TOKEN)
        client.begin(Deadline(DEADLINE_S), push_id="push-7", version="0.1")
        with pytest.raises(ServiceError, match=f"{url}/{route}: no answer within the deadline"):
            await in_time(asyncio.to_thread(TRANSFER[route], client))
        assert client.outcomes == {url: Outcome.SILENT}


# --- the driver to the reward service


async def missing(verdict: Awaitable[Any], url: str) -> None:
    """A verdict that is missing is said to be, and whose it would have been."""
    found = await verdict
    assert (found.missing, found.server) == ("timeout", url)
    raise ServiceError(url)


async def missing_group(group: Awaitable[Any], url: str) -> None:
    """The same for a group's."""
    found = await group
    assert found.scores == (None, None)
    raise ServiceError(" ".join(placed.verdict.server for placed in found.verdicts))


def texts() -> list[asyncio.Future[str | None]]:
    """Two completions that are written."""
    futures = [asyncio.get_running_loop().create_future() for _ in range(2)]
    for future in futures:
        future.set_result("waves")
    return futures


REWARD: dict[str, Callable[[RewardClient], Awaitable[Any]]] = {
    "judge": lambda client: missing(client.judge(TALK, ("a", "b"), 1), client.url),
    "group": lambda client: missing_group(client.group(TALK, texts(), 1), client.url),
    "render": lambda client: client.render(TALK, ("a", "b")),
    "info": lambda client: client.info(),
    "call": lambda client: client.call("GET", "/v1/servers"),
}


@pytest.mark.parametrize("name", REWARD)
async def test_a_call_to_the_reward_service_ends_by_its_deadline_and_names_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reward_server.client, "RENDER_TIMEOUT_S", DEADLINE_S)
    async with silent_server() as url, RewardClient(url, TOKEN, DEADLINE_S) as client:
        with pytest.raises(ServiceError, match=url):
            await in_time(REWARD[name](client))


# --- the reward service to a GenRM server


async def test_a_verdict_ends_by_its_deadline_though_the_genrm_is_silent_and_says_which() -> None:
    settings = RewardSettings(device="cpu", judge_timeout_s=DEADLINE_S)
    route = "v1/chat/completions"
    async with silent_server(route) as url, open_session() as session, Pool(session, TOKEN, max_in_flight=4) as pool:
        pool.add(url)
        verdict = await in_time(Judge(pool, settings, Instruments(pool)).judge(TALK, ("a", "b"), 1))
    assert (verdict.missing, verdict.server) == ("timeout", url)


@pytest.mark.parametrize("route", ["tokenize"])
async def test_a_rendering_ends_by_its_deadline(route: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_server.judge, "RENDER_TIMEOUT_S", DEADLINE_S)
    async with silent_server(route) as url, open_session() as session, Pool(session, TOKEN, max_in_flight=4) as pool:
        pool.add(url)
        with pytest.raises(TimeoutError):
            await in_time(Judge(pool, RewardSettings(device="cpu"), Instruments(pool)).render(TALK, ("a", "b")))


async def test_a_genrm_whose_health_is_silent_is_lost_and_its_call_goes_to_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("HEALTH_TIMEOUT_S", "HEALTH_INTERVAL_S"):
        monkeypatch.setattr(reward_server.pool, name, DEADLINE_S / 6)
    async with (
        silent_server("health", "work") as silent,
        silent_server("nothing") as good,
        open_session() as session,
        Pool(session, TOKEN, max_in_flight=4, health_timeout_s=DEADLINE_S) as pool,
    ):
        for url in (silent, good):
            pool.add(url)
        pool.servers[0].state = "ready"  # it answered once, and then no more
        pool.servers[0].last_sign = asyncio.get_running_loop().time()
        call = PooledCall()
        reply = await in_time(pool.post("/work", {}, 1, call))
        while pool.servers[0].state == "ready":
            await asyncio.sleep(0.01)
    assert (reply.status, call.server, pool.servers[0].state) == (200, good, "lost")


async def test_the_cache_counters_of_a_silent_genrm_stay_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_server.figures, "METRICS_TIMEOUT_S", DEADLINE_S)
    async with silent_server() as url, open_session() as session:
        cache = PrefixCache(10.0, 5.0)
        cache.update(await in_time(read_figures(Peer(session, url, TOKEN))))
    assert (cache.queries, cache.hits) == (10.0, 5.0)


# --- an operator to the fleet and to the reward service


@pytest.mark.parametrize(
    "command", [["status"], ["checksums"], ["add", "http://a"], ["remove", "http://a"], ["3"], ["+1"]]
)
async def test_a_command_to_the_fleet_ends_by_its_deadline_and_names_the_route(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FleetClient.call.__kwdefaults__, "timeout_s", DEADLINE_S)
    monkeypatch.setattr(rollout_server.scale, "CHECKSUMS_TIMEOUT_S", DEADLINE_S)
    async with silent_server() as url, aiohttp.ClientSession() as session:
        with pytest.raises(ServiceError, match=f"{url}/v1/"):
            await in_time(rollout_scale.carry_out(FleetClient(url, TOKEN, session), command))


@pytest.mark.parametrize("command", [["status"], ["add", "http://a"], ["remove", "http://a"], ["3"], ["+1"]])
async def test_a_command_to_the_reward_service_ends_by_its_deadline_and_names_it(command: list[str]) -> None:
    async with silent_server() as url, RewardClient(url, TOKEN, DEADLINE_S) as client:
        with pytest.raises(ServiceError, match=url):
            await in_time(reward_scale.carry_out(client, command))


# --- a program to a server's health


async def test_a_server_whose_health_is_silent_is_not_healthy(tmp_path: Path) -> None:
    async with silent_server() as url:
        process = ServerProcess("replica-0", [], {}, tmp_path / "log", url)
        assert not await in_time(asyncio.to_thread(process.is_healthy, DEADLINE_S))


async def test_a_server_that_a_run_would_join_and_that_is_silent_is_named_before_it_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trainer.joined, "PROBE_TIMEOUT_S", DEADLINE_S)
    async with silent_server() as url:
        with pytest.raises(ConfigError, match=f"nobody answers at {url}"):
            await in_time(asyncio.to_thread(trainer.joined.is_ready, url))


# --- nothing is missing from the tables


@pytest.mark.parametrize(
    ("cls", "tested"),
    [
        (ControlRoutes, {name.partition(",")[0] for name in CONTROL}),
        (RewardClient, set(REWARD)),
        (FleetClient, {"call"}),
        (RolloutClient, {"generate"}),
        (Channel, {"close", "post", "send"}),  # as of a Peer; its end is in tests/reward_server/test_channel.py
        (Peer, {"get", "post", "send"}),  # only ever under a caller's deadline, or their own
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_every_public_call_of_a_client_meets_silence_here(cls: type, tested: set[str]) -> None:
    assert public_calls(cls) == tested


def test_every_route_of_a_transfer_meets_silence_here() -> None:
    calls = {name for name, _ in inspect.getmembers(FleetSyncClient, inspect.isfunction) if not name.startswith("_")}
    assert calls == {*TRANSFER, "begin", "settle"}
