"""No deadline is missing: each call to an actor meets one that never comes back, and ends by itself; see
test_deadlines.py."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import reward_server.fetch_wait
import rollout_server.scale
import rollout_server.started
import trainer.judge_service
import trainer.ranks
import wire.estate
import wire.hosting
from reward_server.fetch_wait import until_fetched
from rollout_server.membership import Membership, Replica, State
from rollout_server.started import Host, StartedReplicas
from tests.contract.silence import DEADLINE_S, SilentActor, SilentCluster, in_time, public_calls
from tests.wire.fake_cluster import FakeCluster, plan
from trainer.batch import MiniBatch, Sample
from trainer.config import RunSettings
from trainer.judge_service import JudgeService
from trainer.ranks import Learner
from wire.claim import Owner
from wire.errors import ServiceError
from wire.estate import claimed, inherited, remnants
from wire.hosting import PlacedServer, end_server
from wire.membership import Member

OWNER = Owner("/runs/a", "1", "01", 100.0)
SAMPLE = Sample((1,), (2,), (-0.5,), 1.0)


# --- the driver to the learner's ranks

RANKS: dict[str, Callable[[Learner], Awaitable[Any]]] = {
    "setup": lambda learner: learner.setup("127.0.0.1"),
    "reference": lambda learner: learner.reference([SAMPLE]),
    "accumulate": lambda learner: learner.accumulate([MiniBatch([[]], 1)] * learner.num_ranks),
    "step": lambda learner: learner.step([[], []]),
    "open_transfer": lambda learner: learner.open_transfer([Member("http://a", 1, "")], DEADLINE_S),
    "send_weights": lambda learner: learner.send_weights(learner.version, "push-7", DEADLINE_S),
    "save": lambda learner: learner.save("folder"),
    "load": lambda learner: learner.load("folder"),
    "export": lambda learner: learner.export("folder"),
    "export_adapter": lambda learner: learner.export_adapter("folder"),
}


def learner_of(*hanging: str) -> Learner:
    """Two ranks, of which the second never comes back from `hanging`."""
    settings = RunSettings(device="cpu", num_learner_ranks=2, learner_timeout_s=DEADLINE_S)
    facts = {"num_parameters": 1}
    return Learner([SilentActor(facts=facts), SilentActor(*hanging, facts=facts)], settings)


@pytest.mark.parametrize("method", RANKS)
async def test_a_call_to_the_ranks_ends_by_its_deadline_and_names_the_rank(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer.ranks, "TRANSFER_MARGIN_S", 0.0)
    with pytest.raises(ServiceError, match=f"learner rank 1 did not finish {method} within 0 s"):
        await in_time(RANKS[method](learner_of(method)))


@pytest.mark.parametrize("method", ["open_transfer", "send_weights"])
async def test_a_transfer_beside_other_work_ends_by_its_deadline_and_its_hosts_margin(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer.ranks, "TRANSFER_MARGIN_S", 0.0)
    settings = RunSettings(device="cpu", learner_timeout_s=60.0)
    learner = Learner([SilentActor(f"{method}_beside", facts={"sends_beside": True})], settings)
    await learner.setup("127.0.0.1")
    with pytest.raises(ServiceError, match=f"learner rank 0 did not finish {method} within 0 s"):
        await in_time(RANKS[method](learner))


async def test_the_port_that_ranks_meet_at_is_waited_for_with_a_deadline() -> None:
    settings = RunSettings(device="cpu", learner_timeout_s=DEADLINE_S)
    with pytest.raises(ServiceError, match="learner rank 0 did not finish pick_port within 0 s"):
        await in_time(Learner([SilentActor("pick_port")], settings).setup("127.0.0.1"))


async def test_closing_does_not_wait_for_a_silent_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer.ranks, "CLOSE_TIMEOUT_S", DEADLINE_S)
    await in_time(learner_of("close").close())


# --- the driver to the hosts of servers


class SilentHost:
    """A replica's host of which one method never comes back."""

    def __init__(self, method: str) -> None:
        self._method = method

    async def start(self) -> str:
        return str(await self._answer("start", "http://a"))

    async def check(self) -> None:
        await self._answer("check")

    async def stop(self) -> None:
        await self._answer("stop")

    async def _answer(self, method: str, answer: Any = None) -> Any:
        if method == self._method:
            await asyncio.Event().wait()
        return answer


class FakeFleet:
    """Takes in whoever is added."""

    def __init__(self) -> None:
        self.membership = Membership()

    async def add(self, url: str, *, is_started: bool = False) -> None:
        self.membership.enter(Replica(url, is_started=is_started, state=State.READY))

    async def remove(self, url: str) -> None:
        pass

    def ready(self) -> list[Replica]:
        return self.membership.of(State.READY)


def started_with(host: SilentHost, said: list[str], **changes: Any) -> StartedReplicas:
    settings = RunSettings(device="cpu", probe_interval_s=0.05, **changes)
    fleet: Any = FakeFleet()
    return StartedReplicas(settings, fleet, lambda _: host, said.append)


async def test_the_start_of_a_replica_ends_by_its_deadline_and_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_server.started, "PLACE_MARGIN_S", 0.0)
    replicas = started_with(SilentHost("start"), [], startup_timeout_s=DEADLINE_S)
    with pytest.raises(ServiceError, match="replica-0 found no node with a free `rollout` resource within 0 s"):
        await in_time(replicas.start(1))


async def test_a_replicas_host_that_is_silent_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_server.started, "CHECK_TIMEOUT_S", DEADLINE_S)
    replicas = started_with(SilentHost("check"), [])
    await replicas.start(1)
    post = replicas._posts[0]
    assert await in_time(replicas._problem_of(post)) is None  # the probe of the replica itself says whether it is lost


async def test_the_end_of_a_replica_is_waited_for_with_a_deadline_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_server.started, "STOP_TIMEOUT_S", DEADLINE_S)
    said: list[str] = []
    replicas = started_with(SilentHost("stop"), said)
    await replicas.start(1)
    await in_time(replicas.stop())
    assert said[-1] == "the host of http://a did not end within 0 s; the run's supervisor ends it"


def judge_service_on(cluster: FakeCluster, folder: Path) -> JudgeService:
    settings = RunSettings(device="cpu", startup_timeout_s=DEADLINE_S, token_file=str(folder / "token"))
    return JudgeService(settings, cluster, OWNER, lambda _: None)


async def test_the_start_of_the_reward_service_ends_by_its_deadline_and_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer.judge_service, "PLACE_MARGIN_S", 0.0)
    service = judge_service_on(SilentCluster("start"), tmp_path)
    with pytest.raises(ServiceError, match="the reward service did not start within 0 s, and its host is silent"):
        await in_time(service.start())
    await service.stop()


async def test_room_for_the_reward_service_is_waited_for_with_a_deadline(tmp_path: Path) -> None:
    cluster = FakeCluster()
    cluster.has_room = False
    service = judge_service_on(cluster, tmp_path)
    with pytest.raises(ServiceError, match="the reward service found no node with room for it within 0 s"):
        await in_time(service.start())
    await service.stop()


async def test_a_reward_services_host_that_is_silent_ends_the_run_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer.judge_service, "WATCH_INTERVAL_S", 0.01)
    monkeypatch.setattr(trainer.judge_service, "CHECK_TIMEOUT_S", DEADLINE_S)
    service = judge_service_on(SilentCluster("check"), tmp_path)
    url = await service.start()
    with pytest.raises(ServiceError, match=f"the host of the reward service at {url} did not answer within 0 s"):
        await in_time(service.watch())
    await service.stop()


async def test_the_end_of_a_server_is_waited_for_with_a_deadline() -> None:
    cluster = SilentCluster("stop")
    actor = cluster.launch(plan(), OWNER)
    await in_time(end_server(cluster, actor, OWNER, DEADLINE_S))
    assert actor.is_killed


@pytest.mark.parametrize("method", ["held", "take"])
async def test_a_silent_host_of_a_dead_driver_is_asked_with_a_deadline(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire.estate, "ASK_TIMEOUT_S", DEADLINE_S)
    cluster = SilentCluster(method)
    cluster.launch(plan(), Owner("/runs/a", "dead", "00", 100.0))
    cluster.dead.add("dead")
    assert await in_time(inherited(cluster, OWNER, "replica", plan, print)) == {}
    for remnant in await in_time(remnants(cluster, "replica")):
        assert not await in_time(claimed(cluster, remnant, OWNER))


async def test_a_renewal_that_is_not_answered_does_not_keep_the_next_from_being_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wire.hosting, "RENEW_S", 0.01)
    monkeypatch.setattr(wire.hosting, "RENEW_TIMEOUT_S", 0.05)
    cluster = SilentCluster("renew")
    server = PlacedServer(plan(), cluster, OWNER, print)
    await server.place()
    cluster.clock.now = 50.0
    await asyncio.sleep(0.1)
    (actor,) = cluster.actors.values()
    actor.silent.clear()
    async with asyncio.timeout(5):
        while actor.host.held().silent_s:
            await asyncio.sleep(0.01)
    await server.stop()


async def test_a_host_that_does_not_say_how_far_its_files_are_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_server.fetch_wait, "LOOK_TIMEOUT_S", DEADLINE_S)
    look = SilentActor("fetch").fetch.remote
    with pytest.raises(ServiceError, match="did not say within 0 s how far its files are"):
        await in_time(until_fetched(look, "toys/judge", print))


# --- nothing is missing from the tables


@pytest.mark.parametrize(("cls", "tested"), [(Learner, {*RANKS, "close"}), (Host, {"start", "check", "stop"})])
def test_every_public_call_to_an_actor_meets_silence_here(cls: type, tested: set[str]) -> None:
    assert public_calls(cls) == tested
