"""Servers in a cluster, as the driver that owns them has them. Ray-free: `wire/placement.py` is the cluster.

Plan --start--> an actor that waits for room --> its server answers --> check, and the claim is renewed --> stop
     --of one that a dead driver left-----------^
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from wire.claim import RENEW_S, NotYours, Owner
from wire.errors import ConfigError, ServiceError
from wire.identity import Identity
from wire.room import Needs, Resources, until_found

RENEW_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Plan:
    """A server that is to be placed.

    `name` is what a message calls the one of `index` among those of its `kind`: `replica-0`. `host` is the actor's
    class, a `wire.hosted.HostedServer`, made of `arguments`, the identity, the index and the owner. It has `resources`
    and `num_gpus` on its node. `is_kept`: it outlives its driver. `stop_timeout_s` is what its end may take.
    """

    kind: str
    index: int
    name: str
    host: type
    arguments: tuple[Any, ...]
    identity: Identity
    resources: Mapping[str, float]
    num_gpus: int
    is_kept: bool
    stop_timeout_s: float = 25.0

    @property
    def needs(self) -> Needs:
        """What a node must have free."""
        each = {**self.resources, "GPU": self.num_gpus}
        return Needs(self.name, {name: amount for name, amount in each.items() if amount})


class Cluster(Protocol):
    """Ray, as the owner of servers needs it. An actor is a handle of its make."""

    def launch(self, plan: Plan, owner: Owner) -> Any:
        """An actor of the plan, which waits for a node with room."""

    def answers(self, actor: Any) -> Callable[[float], bool]:
        """Whether the actor is there, waited for at most so many seconds; it blocks."""

    def resources(self) -> tuple[Resources, Resources]:
        """The cluster's: in all, and free; it blocks."""

    async def ask(self, actor: Any, method: str, *arguments: Any) -> Any:
        """The actor's answer. Raises ConfigError or ServiceError: its own, or that it is gone. No deadline."""

    def kill(self, actor: Any) -> None:
        """End it; its server ends with it."""

    def kept(self, kind: str) -> dict[str, Any]:
        """Actors of a kind that outlive their drivers, by name; it blocks."""

    def is_over(self, owner: Owner) -> bool:
        """Whether that life of a driver is known to be over; it blocks."""


class PlacedServer:
    """A server of this driver's, on whichever node has room; nothing is asked for yet.

    Args:
        plan: what it is.
        cluster: where.
        owner: this driver.
        say: told what is missing where no node has room.
        actor: its host, where a dead driver left it and the claim to it was taken.
    """

    def __init__(
        self, plan: Plan, cluster: Cluster, owner: Owner, say: Callable[[str], None], actor: Any = None
    ) -> None:
        self._plan, self._cluster, self._owner, self._say, self._actor = plan, cluster, owner, say, actor
        self._has_node = actor is not None
        self._lost: NotYours | None = None
        self._renewing: asyncio.Task[None] | None = None
        if actor is not None:
            self._keep()

    async def place(self) -> None:
        """Find it a node, unless it has one. No deadline."""
        if self._actor is None:
            self._actor = self._cluster.launch(self._plan, self._owner)
            self._keep()
            answers = self._cluster.answers(self._actor)
            await until_found(self._plan.needs, answers, self._cluster.resources, self._say)
            self._has_node = True

    async def start(self) -> str:
        """Place and start the server, unless that was done, and wait until it answers; returns its URL.

        Raises:
            ConfigError: its node cannot serve what the settings say.
            ServiceError: with the server's last words.
        """
        await self.place()
        return str(await self.ask("start"))

    async def check(self) -> None:
        """Raises ServiceError where the server, or its node, is gone, or another driver has taken it over."""
        await self.ask("check")

    async def stop(self) -> None:
        """End the server and give its place back. A dead actor's server was ended with it."""
        if self._renewing is not None:
            self._renewing.cancel()
        if self._actor is None or self._lost is not None:
            return
        if not self._has_node:  # it would hear of it when there is room
            self._cluster.kill(self._actor)
        else:
            await end_server(self._cluster, self._actor, self._owner, self._plan.stop_timeout_s)

    async def ask(self, method: str) -> Any:
        """The host's answer to a call that says whose it is. No deadline.

        Raises:
            ConfigError: with the server's name.
            ServiceError: the host's own, or that it is gone, or another driver's.
        """
        if self._lost is not None:
            raise self._lost
        if self._actor is None:
            raise ServiceError(f"{self._plan.name} has no node yet")
        try:
            return await self._cluster.ask(self._actor, method, self._owner.life)
        except ConfigError as error:
            raise ConfigError(f"{self._plan.name}: {error}") from error
        except NotYours as error:
            self._lost = error
            raise

    def _keep(self) -> None:
        self._renewing = asyncio.create_task(self._renew())

    async def _renew(self) -> None:
        while self._lost is None:
            await asyncio.sleep(RENEW_S)
            with suppress(ServiceError, TimeoutError):  # `check` says what is wrong
                async with asyncio.timeout(RENEW_TIMEOUT_S):
                    await self.ask("renew")


async def end_server(cluster: Cluster, actor: Any, owner: Owner, timeout_s: float) -> None:
    """End a server and its host, unless it is another's; the host ends also where the server's end is not heard of."""
    is_ours = True
    try:
        async with asyncio.timeout(timeout_s):
            await cluster.ask(actor, "stop", owner.life)
    except NotYours:
        is_ours = False
    except (ServiceError, TimeoutError):
        pass
    finally:  # also where the wait was given up
        if is_ours:
            cluster.kill(actor)
