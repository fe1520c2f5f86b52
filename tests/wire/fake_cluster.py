"""A cluster of fake servers behind real hosts and real claims; nothing of it is a process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from wire.claim import Claim, Owner
from wire.errors import ServiceError
from wire.hosted import HostedServer
from wire.hosting import Plan
from wire.identity import Identity
from wire.room import Resources

IDENTITY = Identity(("serve", "model-a"), ("node", "any port"), ("d1",), "t0", ("vllm 1",))
OTHER = replace(IDENTITY, command=("serve", "model-b"))


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class FakeProcess:
    """A server's process: it answers once `answers` is set."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.num_starts = 0
        self.is_ended = self.is_dead = False
        self.answers = threading.Event()
        self.answers.set()

    def start(self) -> None:
        self.num_starts += 1

    def is_alive(self) -> bool:
        return not (self.is_ended or self.is_dead)

    def wait_healthy(self, deadline_s: float) -> None:
        assert self.answers.wait(deadline_s)
        if not self.is_alive():
            raise ServiceError(self.obituary())

    def obituary(self) -> str:
        return "it ended with exit code 1."

    def stop(self, grace_s: float) -> None:
        self.is_ended = True


class FakeHost(HostedServer):
    """The real host over such a process."""

    def __init__(self, process: FakeProcess, clock: Clock, identity: Identity, index: int, owner: Owner) -> None:
        self.process, self.has_left = process, threading.Event()
        made: Any = process
        claim = Claim(owner, is_kept=True, clock=clock)
        super().__init__(lambda: made, identity, index, claim, startup_timeout_s=5.0, leave=self.has_left.set)

    def fetch(self, life: str) -> None:
        """Nothing, as a reward service's host says whose judge is a folder."""
        self.renew(life)


class FakeActor:
    """A host in the cluster; methods in `silent` are never answered."""

    def __init__(self, host: FakeHost) -> None:
        self.host, self.silent, self.is_killed = host, set[str](), False


class FakeCluster:
    """Has room for everybody, unless `has_room` is off. `dead` are lives of drivers that it knows to be over."""

    def __init__(self) -> None:
        self.clock, self.dead = Clock(), set[str]()
        self.actors: dict[str, FakeActor] = {}
        self.has_room = True

    def launch(self, plan: Plan, owner: Owner) -> FakeActor:
        process = FakeProcess(f"http://{plan.kind}-{plan.index}-{len(self.actors)}")
        host = FakeHost(process, self.clock, plan.identity, plan.index, owner)
        actor = self.actors[f"{plan.kind}-{plan.index}-{len(self.actors)}"] = FakeActor(host)
        return actor

    def answers(self, actor: FakeActor) -> Callable[[float], bool]:
        return lambda _: self.has_room

    def resources(self) -> tuple[Resources, Resources]:
        return {}, {}

    async def ask(self, actor: FakeActor, method: str, *arguments: Any) -> Any:
        if method in actor.silent:
            await asyncio.Event().wait()
        if actor.is_killed or actor.host.has_left.is_set():
            raise ServiceError("the actor is gone")
        return await asyncio.to_thread(getattr(actor.host, method), *arguments)

    def kill(self, actor: FakeActor) -> None:
        actor.is_killed = True

    def kept(self, kind: str) -> dict[str, FakeActor]:
        living = {name: actor for name, actor in self.actors.items() if not actor.is_killed}
        return {name: actor for name, actor in living.items() if name.startswith(f"{kind}-")}

    def is_over(self, owner: Owner) -> bool:
        return owner.life in self.dead


def plan(index: int = 0, identity: Identity = IDENTITY, kind: str = "replica") -> Plan:
    """Of a server that outlives its driver."""
    return Plan(kind, index, f"{kind}-{index}", FakeHost, (), identity, {"rollout": 1}, 0, is_kept=True)
