"""What drivers that died left in the cluster: found, claimed, and taken over or ended. Ray-free.

a dead driver's host --its identity is that of the plan--> claimed: the run's own from now on
                     --it is not, and the run is the same--> claimed and ended: its place is needed
                     --it is not, and the run is another--> left: that run may come back, or it ends by itself
a living driver's host --> left
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wire.claim import RENEW_S, Held, Owner
from wire.errors import RLHFError
from wire.hosting import Cluster, PlacedServer, Plan, end_server
from wire.waits import waiting

ASK_TIMEOUT_S = 10.0  # a host that waits for its node, or whose node is cut off, says nothing
LOOK_AGAIN_S = 1.0
END_TIMEOUT_S = 45.0  # a reward service ends its GenRM servers first
IS_SEARCHED = "is searched for what a dead driver left"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Remnant:
    """A host that outlives its driver, and what it says of itself. `name` is its actor's."""

    name: str
    actor: Any
    held: Held

    def __str__(self) -> str:
        return f"{self.name}{f' at {self.held.url}' if self.held.url else ''} of {self.held.owner.run}"


async def remnants(cluster: Cluster, kind: str) -> list[Remnant]:
    """The hosts of a kind that answer, whoever has them."""
    actors = await asyncio.to_thread(cluster.kept, kind)
    helds = await asyncio.gather(*(_asked(cluster, actor, "held") for actor in actors.values()))
    found = [Remnant(name, actor, held) for (name, actor), held in zip(actors.items(), helds, strict=True) if held]
    return sorted(found, key=lambda one: (one.held.index, one.name))


async def inherited(
    cluster: Cluster, owner: Owner, kind: str, plan_of: Callable[[int], Plan | None], say: Say
) -> dict[int, PlacedServer]:
    """What dead drivers left that this driver would start itself, by index; it is this driver's from now on.

    Args:
        cluster: where.
        owner: this driver.
        kind: of server.
        plan_of: what is to be at an index; None where nothing is.
        say: told of each that is taken over, and why another of the same run is not.
    """
    estate = _Estate(cluster, owner, plan_of, say)
    try:
        with waiting("ray", IS_SEARCHED):
            for remnant in await remnants(cluster, kind):
                await estate.settle(remnant)
    except BaseException:
        await asyncio.gather(*(server.stop() for server in estate.heirs.values()))
        raise
    return estate.heirs


class _Estate:
    """The hosts of one kind, settled one after the other; `heirs` are those that were taken over, by index."""

    def __init__(self, cluster: Cluster, owner: Owner, plan_of: Callable[[int], Plan | None], say: Say) -> None:
        self._cluster, self._owner, self._plan_of, self._say = cluster, owner, plan_of, say
        self.heirs: dict[int, PlacedServer] = {}

    async def settle(self, remnant: Remnant) -> None:
        """Take it over, end it, or leave it."""
        held = remnant.held
        plan = self._plan_of(held.index) if held.index not in self.heirs else None
        difference = held.identity.differences(plan.identity) if plan is not None else "it is not needed"
        is_same_run = held.owner.run == self._owner.run
        if difference and not is_same_run:
            return
        if not await claimed(self._cluster, remnant, self._owner, is_patient=is_same_run):
            return
        if plan is not None and not difference:
            self.heirs[plan.index] = PlacedServer(plan, self._cluster, self._owner, self._say, remnant.actor)
            self._say(f"left by a dead driver, and taken over: {remnant}")
        else:
            self._say(f"left by a dead driver, and ended: {remnant}: {difference}")
            await end_server(self._cluster, remnant.actor, self._owner, END_TIMEOUT_S)


async def claimed(cluster: Cluster, remnant: Remnant, owner: Owner, *, is_patient: bool = False) -> bool:
    """Whether the remnant's claim is this driver's now.

    One that is patient waits for the lease of an owner who is silent, and is not known to be dead: at most LEASE_S.
    """
    before, looked = remnant.held, time.monotonic()
    while True:
        is_dead = await asyncio.to_thread(cluster.is_over, before.owner)
        if await _asked(cluster, remnant.actor, "take", owner, before.owner.life, is_dead):
            return True
        held: Held | None = await _asked(cluster, remnant.actor, "held")
        silent_s = before.silent_s + time.monotonic() - looked
        if is_dead or not is_patient or held is None or held.owner != before.owner:
            return False  # another driver was faster, or the owner may live
        if held.silent_s < silent_s - RENEW_S / 2:
            return False  # it was heard of meanwhile: it lives
        await asyncio.sleep(LOOK_AGAIN_S)


async def _asked(cluster: Cluster, actor: Any, method: str, *arguments: Any) -> Any:
    """The host's answer; None where it gives none."""
    try:
        async with asyncio.timeout(ASK_TIMEOUT_S):
            return await cluster.ask(actor, method, *arguments)
    except (RLHFError, TimeoutError):
        return None
