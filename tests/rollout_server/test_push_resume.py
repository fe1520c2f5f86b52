"""The end of a push: each member is ready as soon as it resumed; a joiner that cannot have the weights is let go."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from rollout_server.config import RolloutSettings
from rollout_server.control_routes import CallFailed
from rollout_server.fleet import Fleet
from rollout_server.membership import Membership, Replica, State
from rollout_server.push import MAX_FRUITLESS, Push
from tests.rollout_server.world import TOKEN, World
from wire.generation import PolicyVersion
from wire.membership import Member, Outcome, TransferReport

V1 = PolicyVersion(0, 1)


class Routes:
    """Answers all but the resume of `problems`, which fails with them after `thaws` is set."""

    def __init__(self, problems: dict[str, CallFailed]) -> None:
        self.problems, self.thaws = problems, asyncio.Event()

    async def pause(self, replica: Replica, timeout_s: float, *, keep: bool) -> None:
        pass

    async def resume(self, replica: Replica, timeout_s: float) -> None:
        if replica.url in self.problems:
            await self.thaws.wait()
            raise self.problems[replica.url]


class Sender:
    """Sends at once."""

    async def open_transfer(self, members: Sequence[Member], timeout_s: float) -> TransferReport:
        return TransferReport({member.url: Outcome.DONE for member in members}, {})

    async def send_weights(self, version: PolicyVersion, push_id: str, timeout_s: float) -> TransferReport:
        return TransferReport({}, {})


def fleet_of(problems: dict[str, CallFailed]) -> tuple[Membership, Any, Push]:
    membership, routes = Membership(), Routes(problems)
    for name in "ab":
        membership.enter(Replica(f"http://{name}", 1, name, state=State.SYNCING))
    given: Any = routes
    push = Push(membership, given, timeout_s=1.0, probe_timeout_s=1.0, drain_timeout_s=1.0, keep=True)
    return membership, routes, push


async def test_one_that_froze_before_it_resumed_holds_up_no_other_and_is_lost() -> None:
    membership, routes, push = fleet_of({"http://a": CallFailed(Outcome.SILENT, "it did not answer")})
    bringing = asyncio.create_task(push.bring(Sender(), V1, membership.of(State.SYNCING)))
    async with asyncio.timeout(5):
        while not membership.of(State.READY):
            await asyncio.sleep(0.005)
    frozen, other = membership.replicas
    assert not bringing.done() and (other.state, other.version) == (State.READY, V1)
    assert frozen.state is State.SYNCING
    routes.thaws.set()
    await bringing
    assert (frozen.state, frozen.reason) == (State.LOST, "it did not answer")


async def test_one_that_holds_the_version_and_cannot_resume_gets_no_prompts() -> None:
    membership, routes, push = fleet_of({"http://a": CallFailed(Outcome.FAILED, "HTTP 500")})
    routes.thaws.set()
    await push.bring(Sender(), V1, membership.of(State.SYNCING))
    assert [replica.state for replica in membership.replicas] == [State.LOST, State.READY]


async def test_a_joiner_that_lives_and_never_takes_the_weights_is_lost_and_the_run_goes_on() -> None:
    world = World()
    settings = RolloutSettings(device="cpu", transfer_timeout_s=5.0, probe_timeout_s=2.0)
    async with world.serving() as first, world.serving() as second, Fleet(settings, TOKEN, say=world.say) as fleet:
        await fleet.add(first.url)
        await fleet.publish(world, V1)
        joiner = await fleet.add(second.url)
        world.failures = [{1: Outcome.FAILED}] * MAX_FRUITLESS
        await fleet._catch_up()
        assert (joiner.state, [replica.url for replica in fleet.ready()]) == (State.LOST, [first.url])
        assert "reached nobody in 3 attempts" in joiner.reason
