"""The real fleet, over servers that have vLLM's control routes behind the real gate; the learner is a fake sender."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import unused_port

from rollout_server.config import RolloutSettings
from rollout_server.fleet import Fleet
from rollout_server.membership import State
from tests.rollout_server.world import TOKEN, Server, World
from wire.errors import ServiceError, Unauthorized
from wire.generation import PolicyVersion
from wire.membership import Outcome
from wire.token import auth_headers

V0, V1, V2 = (PolicyVersion(0, step) for step in range(3))


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """Two servers; `world.serving()` makes more."""
    world = World()
    async with AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(world.serving())
        yield world
        for server in world.servers:
            server.hanging.clear()


@asynccontextmanager
async def fleet_of(
    world: World, *servers: Server, token: str = TOKEN, skip_push: bool = False, **changes: Any
) -> AsyncIterator[Fleet]:
    defaults = {"transfer_timeout_s": 5.0, "probe_interval_s": 0.02, "probe_timeout_s": 0.5, "drain_timeout_s": 5.0}
    settings = RolloutSettings(device="cpu", **{**defaults, **changes})
    async with Fleet(settings, token, skip_push=skip_push, say=world.say) as fleet:
        for server in servers or world.servers:
            await fleet.add(server.url)
        world.events.clear()
        yield fleet


@asynccontextmanager
async def tended(fleet: Fleet) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(fleet.tend())
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, ServiceError):
            await task


async def until(condition: Callable[[], bool], task: asyncio.Task[None] | None = None) -> None:
    async with asyncio.timeout(10):
        while not condition():
            assert task is None or not task.done(), task
            await asyncio.sleep(0.005)


def indices(world: World, fleet: Fleet) -> list[int]:
    """Which servers are ready."""
    return [world.index_of(replica.url) for replica in fleet.ready()]


async def stream(fleet: Fleet, index: int, world: World) -> asyncio.Task[None]:
    """Something that the replica writes for ever."""
    replica = fleet.membership.find(world.servers[index].url)
    assert replica is not None
    task: asyncio.Task[None] = asyncio.create_task(asyncio.Event().wait())  # type: ignore[arg-type]  # any task does
    replica.streams.add(task)
    task.add_done_callback(replica.streams.discard)
    return task


# --- pushes


async def test_a_replica_that_joined_is_not_ready_before_a_push(world) -> None:
    async with fleet_of(world) as fleet:
        assert [(r.world_size, r.state) for r in fleet.membership.replicas] == [(1, State.SYNCING), (2, State.SYNCING)]
        assert fleet.ready() == [] and fleet.membership.epoch == 0


async def test_a_push_pauses_sends_and_resumes_and_the_group_is_opened_only_for_other_members(world) -> None:
    async with fleet_of(world) as fleet:
        await fleet.publish(world, V0)
        assert world.happened() == ["pause", "open [0, 1]", "send 0.0", "resume"]
        assert indices(world, fleet) == [0, 1] and fleet.membership.epoch == 2
        await fleet.publish(world, V1)
        assert world.happened() == ["pause", "send 0.1", "resume"]
        assert {replica.version for replica in fleet.ready()} == {V1} and fleet.membership.epoch == 2
        async with world.serving() as third:
            await fleet.add(third.url)
            await fleet.publish(world, V2)
            assert "open [0, 1, 2]" in world.happened() and fleet.membership.epoch == 3


async def test_a_pause_keeps_the_requests_and_the_cache(world) -> None:
    async with fleet_of(world) as fleet:
        await fleet.publish(world, V0)
    assert world.servers[0].queries == [{"mode": "keep", "clear_cache": "false"}]


async def test_without_inflight_updates_requests_are_finished_first_and_the_cache_is_emptied(world) -> None:
    async with fleet_of(world, inflight_updates=False) as fleet:
        await fleet.publish(world, V0)
    assert world.servers[1].queries == [{"mode": "wait", "clear_cache": "true"}]


async def test_no_prompt_goes_to_a_replica_while_it_takes_weights(world) -> None:
    async with fleet_of(world) as fleet:
        await fleet.publish(world, V0)
        world.gate.clear()
        publishing = asyncio.create_task(fleet.publish(world, V1))
        await until(lambda: "send 0.1" in world.events)
        assert fleet.ready() == []
        world.gate.set()
        await publishing
        assert indices(world, fleet) == [0, 1]


@pytest.mark.parametrize("outcome", [Outcome.GONE, Outcome.SILENT])
async def test_a_death_in_mid_transfer_ends_the_epoch_and_the_survivors_take_the_same_version(world, outcome) -> None:
    async with fleet_of(world) as fleet:
        await fleet.publish(world, V0)
        world.happened()
        world.failures = [{0: outcome, 1: Outcome.FAILED}]
        await fleet.publish(world, V1)
        assert world.happened() == ["pause", "send 0.1", "is_paused", "open [1]", "send 0.1", "resume"]
        assert indices(world, fleet) == [1] and fleet.ready()[0].version == V1
        assert fleet.membership.epoch == 3 and fleet.membership.counts["retries"] == 1
        lost = fleet.membership.find(world.servers[0].url)
        assert lost.state is State.LOST and str(outcome) in lost.reason and "resume 0" not in world.events


async def test_one_that_answered_with_an_error_is_lost_only_if_its_engine_is_dead(world) -> None:
    async with fleet_of(world) as fleet:
        await fleet.publish(world, V0)
        world.servers[0].statuses["is_paused"] = 500
        world.failures = [{0: Outcome.FAILED, 1: Outcome.FAILED}]
        await fleet.publish(world, V1)
        assert indices(world, fleet) == [1] and "engine is dead" in fleet.membership.find(world.servers[0].url).reason


async def test_a_member_that_dies_while_the_group_forms_costs_only_itself(world) -> None:
    async with fleet_of(world) as fleet:
        world.open_failures = [{1: Outcome.GONE}]
        await fleet.publish(world, V0)
        assert world.happened() == ["pause", "open [0, 1]", "open [0]", "send 0.0", "resume"]
        assert indices(world, fleet) == [0]


async def test_a_member_that_cannot_be_paused_is_lost_if_it_is_gone(world) -> None:
    async with fleet_of(world, probe_timeout_s=0.2) as fleet:
        await fleet.publish(world, V0)
        world.servers[1].hanging.add("pause")
        await fleet.publish(world, V1)
        assert indices(world, fleet) == [0]
        assert "/pause did not answer within 0.2 s" in fleet.membership.find(world.servers[1].url).reason


async def test_what_fails_again_and_again_with_nobody_to_blame_ends_the_push_with_the_reasons(world) -> None:
    async with fleet_of(world) as fleet:
        await fleet.publish(world, V0)
        world.failures = [{0: Outcome.FAILED, 1: Outcome.FAILED}] * 3
        with pytest.raises(ServiceError, match=r"version 0\.1 reached nobody in 3 attempts: .*it broke off"):
            await fleet.publish(world, V1)
        assert fleet.ready() == []  # nobody is known to hold anything


async def test_one_that_lives_and_takes_no_weights_is_parted_with_and_the_others_take_them(world) -> None:
    async with fleet_of(world) as fleet:
        await fleet.publish(world, V0)
        world.failures = [{0: Outcome.FAILED, 1: Outcome.FAILED}] * 3
        world.first = 1
        await fleet.publish(world, V1)
        assert indices(world, fleet) == [0] and world.sent_to[-1] == [0]
        assert "takes no weights" in fleet.membership.find(world.servers[1].url).reason


async def test_an_error_of_the_learners_own_is_raised_and_the_replicas_resume(world) -> None:
    async with fleet_of(world) as fleet:
        await fleet.publish(world, V0)
        world.happened()
        world.failures = [ServiceError("learner rank 0: send_weights: no memory")]
        with pytest.raises(ServiceError, match="no memory"):
            await fleet.publish(world, V1)
        assert world.happened() == ["pause", "send 0.1", "resume"] and fleet.ready() == []


async def test_a_cancelled_push_resumes_the_replicas(world) -> None:
    async with fleet_of(world) as fleet:
        await fleet.publish(world, V0)
        world.gate.clear()
        task = asyncio.create_task(fleet.publish(world, V1))
        await until(lambda: "send 0.1" in world.events)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert {"resume 0", "resume 1"} <= set(world.events) and fleet.ready() == []


async def test_with_nobody_there_a_version_is_live_all_the_same_and_whoever_comes_takes_it(world) -> None:
    async with fleet_of(world) as fleet:
        for replica in list(fleet.membership.replicas):
            await fleet.remove(replica.url)
        await fleet.publish(world, V1)
        assert fleet.version == V1 and fleet.ready() == []
        async with tended(fleet):
            await fleet.add(world.servers[1].url)
            await until(lambda: indices(world, fleet) == [1])
        assert fleet.ready()[0].version == V1


async def test_skip_push_moves_only_the_label_after_a_first_real_push(world) -> None:
    async with fleet_of(world, skip_push=True) as fleet:
        await fleet.publish(world, V0)
        assert "send 0.0" in world.happened()
        await fleet.publish(world, V1)
        assert world.happened() == ["update_weight_version"]
        assert await fleet.versions() == ["0.1", "0.1"] and indices(world, fleet) == [0, 1]


# --- who comes and goes


async def test_a_joiner_takes_the_live_version_before_its_first_prompt_and_nobody_else_is_paused(world) -> None:
    async with fleet_of(world, world.servers[0]) as fleet:
        await fleet.publish(world, V1)
        world.sent_to.clear()
        async with tended(fleet):
            await fleet.add(world.servers[1].url)
            assert indices(world, fleet) == [0]
            await until(lambda: indices(world, fleet) == [0, 1])
        assert world.sent_to == [[1]] and fleet.membership.counts["joins"] == 2
        assert {replica.version for replica in fleet.ready()} == {V1}
        await fleet.publish(world, V2)
        assert world.sent_to == [[1], [0, 1]]


async def test_a_joiner_for_whom_the_learner_is_too_far_ahead_is_in_the_next_push(world) -> None:
    async with fleet_of(world, world.servers[0]) as fleet:
        await fleet.publish(world, V0)
        world.version = V1  # a step has begun
        async with tended(fleet):
            await fleet.add(world.servers[1].url)
            await asyncio.sleep(0.1)
            assert indices(world, fleet) == [0]
            await fleet.publish(world, V1)
            assert indices(world, fleet) == [0, 1]


async def test_one_that_leaves_finishes_what_it_writes_and_gets_no_more(world) -> None:
    async with fleet_of(world) as fleet:
        await fleet.publish(world, V0)
        writing = await stream(fleet, 0, world)
        leaving = asyncio.create_task(fleet.remove(world.servers[0].url))
        await asyncio.sleep(0.05)
        assert indices(world, fleet) == [1] and not leaving.done()
        assert fleet.membership.find(world.servers[0].url).state is State.DRAINING
        writing.cancel()  # it is done
        await leaving
        assert fleet.membership.find(world.servers[0].url) is None and fleet.membership.counts["leaves"] == 1


async def test_what_a_leaver_has_not_finished_in_time_is_handed_over(world) -> None:
    async with fleet_of(world, drain_timeout_s=0.1) as fleet:
        await fleet.publish(world, V0)
        writing = await stream(fleet, 0, world)
        await fleet.remove(world.servers[0].url)
        await asyncio.gather(writing, return_exceptions=True)
        assert writing.cancelled()


# --- who is lost


@pytest.mark.parametrize("how", ["hangs", "fails"])
async def test_one_whose_engine_does_not_answer_is_lost_and_what_it_wrote_goes_to_others(world, how) -> None:
    async with fleet_of(world, probe_timeout_s=0.2) as fleet:
        await fleet.publish(world, V0)
        writing = await stream(fleet, 1, world)
        async with tended(fleet):
            if how == "hangs":
                world.servers[1].hanging.add("is_paused")
            else:
                world.servers[1].statuses["is_paused"] = 500
            await until(lambda: indices(world, fleet) == [0])
        await asyncio.gather(writing, return_exceptions=True)
        assert writing.cancelled() and fleet.membership.counts["losses"] == 1
        assert any("is lost" in line and world.servers[1].url in line for line in world.said)


async def test_a_suspect_is_asked_at_once(world) -> None:
    async with fleet_of(world, probe_interval_s=60.0) as fleet:
        await fleet.publish(world, V0)
        async with tended(fleet):
            await until(lambda: "is_paused 1" in world.events)
            world.servers[1].statuses["is_paused"] = 500
            fleet.suspect(fleet.membership.find(world.servers[1].url))
            await until(lambda: indices(world, fleet) == [0])


async def test_one_that_thawed_comes_back_as_a_new_one_and_takes_the_live_version_first(world) -> None:
    async with fleet_of(world, probe_timeout_s=0.2) as fleet:
        await fleet.publish(world, V0)
        former = fleet.membership.find(world.servers[1].url)
        async with tended(fleet):
            world.servers[1].hanging |= {"is_paused", "get_world_size"}
            await until(lambda: former.state is State.LOST)
            await fleet.publish(world, V1)
            world.sent_to.clear()
            world.servers[1].hanging.clear()
            await until(lambda: indices(world, fleet) == [0, 1])
        assert world.sent_to == [[1]] and fleet.membership.find(world.servers[1].url) is not former
        assert former.state is State.LOST and {replica.version for replica in fleet.ready()} == {V1}


async def test_one_that_comes_back_with_another_token_stays_lost_and_its_reason_is_shown(world) -> None:
    async with fleet_of(world) as fleet:
        await fleet.publish(world, V0)
        async with tended(fleet) as tending:
            world.servers[1].statuses |= {"is_paused": 500, "get_world_size": 401}
            await until(lambda: "refuses the token" in fleet.state()["replicas"][1]["reason"], tending)
            assert indices(world, fleet) == [0]


async def test_one_that_was_started_again_is_not_taken_for_its_former_self(world) -> None:
    async with fleet_of(world) as fleet:
        await fleet.publish(world, V0)
        former = fleet.membership.find(world.servers[1].url)
        async with tended(fleet):
            world.servers[1].restart()
            await until(lambda: former.state is State.LOST)
            await until(lambda: indices(world, fleet) == [0, 1])
        assert fleet.membership.find(world.servers[1].url).boot_id != former.boot_id


async def test_a_push_to_one_that_was_started_again_reaches_nobody_there(world) -> None:
    async with fleet_of(world) as fleet:
        await fleet.publish(world, V0)
        world.servers[1].restart()
        await fleet.publish(world, V1)
        assert indices(world, fleet) == [0] and world.sent_to[-1] == [0]


async def test_while_it_takes_weights_a_replica_need_not_answer_a_probe(world) -> None:
    async with fleet_of(world, probe_timeout_s=0.1) as fleet:
        await fleet.publish(world, V0)
        world.gate.clear()
        publishing = asyncio.create_task(fleet.publish(world, V1))
        await until(lambda: "send 0.1" in world.events)
        async with tended(fleet):
            for server in world.servers:
                server.hanging.add("is_paused")
            await asyncio.sleep(0.3)
            for server in world.servers:
                server.hanging.clear()
        world.gate.set()
        await publishing
        assert indices(world, fleet) == [0, 1] and fleet.membership.counts["losses"] == 0


async def test_with_too_few_replicas_the_run_waits_says_so_and_ends_after_its_limit(world) -> None:
    async with fleet_of(world, min_replicas=2, replica_wait_s=0.3, probe_timeout_s=0.1) as fleet:
        await fleet.publish(world, V0)
        world.servers[1].statuses |= {"is_paused": 500, "get_world_size": 500}
        async with tended(fleet) as tending:
            await until(lambda: any("the run waits: 1 of at least 2 replicas" in line for line in world.said))
            await asyncio.wait([tending], timeout=5)
            with pytest.raises(ServiceError, match=r"1 of at least 2 replicas are ready \(lost: http.*for 0 s; start"):
                tending.result()


async def test_when_the_last_replica_comes_back_in_time_the_run_goes_on(world) -> None:
    async with fleet_of(world, world.servers[0], replica_wait_s=8.0, probe_timeout_s=2.0) as fleet:
        await fleet.publish(world, V0)
        async with tended(fleet) as tending:
            world.servers[0].statuses |= {"is_paused": 500, "get_world_size": 500}
            await until(lambda: any("the run waits" in line for line in world.said), tending)
            world.servers[0].statuses.clear()
            await until(lambda: indices(world, fleet) == [0], tending)


async def test_a_refused_token_is_said_with_the_url(world) -> None:
    with pytest.raises(Unauthorized, match=f"{world.servers[0].url}/get_world_size refuses the token"):
        async with fleet_of(world, token="wrong"):
            pass


async def test_a_replica_that_is_not_there_is_named(world) -> None:
    url = f"http://127.0.0.1:{unused_port()}"
    async with fleet_of(world) as fleet:
        with pytest.raises(ServiceError, match=f"{url}/get_world_size: "):
            await fleet.add(url)


async def test_state_and_metrics_say_what_a_person_wants_to_know(world) -> None:
    async with fleet_of(world) as fleet:
        await fleet.publish(world, V0)
        fleet.count("tokens_discarded", 12)
        state, metrics = fleet.state(), fleet.metrics()
    assert (state["epoch"], state["version"], state["counts"]["joins"]) == (2, "0.0", 2)
    assert [(row["url"], row["state"], row["version"]) for row in state["replicas"]] == [
        (server.url, "ready", "0.0") for server in world.servers
    ]
    assert metrics["fleet/replicas"] == 2 and metrics["fleet/push_bytes"] == 1000
    assert metrics["fleet/transfer_seconds"] == 0.5 and metrics["fleet/load_seconds"] == 0.25
    assert 0 < metrics["fleet/pause_seconds_mean"] <= metrics["fleet/pause_seconds_max"] < 5
    assert metrics["fleet/tokens_discarded"] == 12 and metrics["fleet/losses"] == 0


async def test_checksums_are_asked_of_every_ready_replica(world) -> None:
    async with fleet_of(world) as fleet:
        await fleet.publish(world, V0)
        assert await fleet.checksums() == {server.url: {"w": "default"} for server in world.servers}


async def test_a_sick_joiner_holds_the_learner_only_for_a_while(world, monkeypatch) -> None:
    monkeypatch.setattr("rollout_server.fleet.LEAST_CATCH_UP_S", 0.2)
    async with fleet_of(world, world.servers[0], transfer_timeout_s=60.0) as fleet:
        await fleet.publish(world, V0)
        fleet.push.last_s = 0.01
        given: list[float] = []
        opened = world.open_transfer

        async def note(members: Any, timeout_s: float) -> Any:
            given.append(timeout_s)
            return await opened(members, timeout_s)

        world.open_transfer = note
        started = time.monotonic()
        async with tended(fleet):
            await fleet.add(world.servers[1].url)
            await until(lambda: indices(world, fleet) == [0, 1])
        assert given == [0.2] and time.monotonic() - started < 5


async def test_one_that_a_dead_driver_left_in_mid_push_is_emptied_met_and_takes_the_weights_before_it_writes(
    world: World,
) -> None:
    server = world.servers[1]
    former = server.gate.boot_id
    async with aiohttp.ClientSession(headers=auth_headers(TOKEN)) as session:

        async def call(route: str, **headers: str) -> int:
            async with session.post(f"{server.url}/{route}", headers=headers) as reply:
                return reply.status

        assert await call("start_weight_update", **{"x-push-id": "of-the-dead"}) == 200
        async with fleet_of(world, world.servers[0]) as fleet:
            await fleet.publish(world, V1)
            world.events.clear()
            replica = await fleet.add(server.url, is_started=True, is_inherited=True)
            assert world.happened() == ["pause", "resume", "get_world_size", "is_paused"]
            assert server.queries[-1] == {"mode": "abort", "clear_cache": "true"}
            assert (replica.state, replica.version, replica.boot_id) == (State.SYNCING, None, server.gate.boot_id)
            assert await call("update_weights", **{"x-boot-id": former, "x-push-id": "of-the-dead"}) == 409
            assert await call("v1/completions") == 503
            await fleet.publish(world, V2)
            assert replica in fleet.ready() and replica.version == V2
