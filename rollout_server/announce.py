"""Replicas that are started by hand in a cluster: announced while they serve, and joined by one run at a time.

    rollout_server.main --announces--> registry <--looks, takes-- Finder --adds--> fleet

A replica writes for one run at a time, for its weights are that run's. So a run takes it in the registry before it
joins it, and again at every look; who is silent for `FORGET_AFTER_S`, or known to be dead, has it no longer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any, Protocol

from rollout_server.config import RolloutSettings
from wire.announce import Announcer
from wire.errors import ServiceError
from wire.registry import REPLICA, Facts

LOOK_EVERY_S = 5.0


def facts_of(settings: RolloutSettings) -> Facts:
    """What a run and a replica must have in common."""
    names = (
        "model_name_or_path", "model_revision", "rollout_dtype", "fp32_lm_head", "max_model_len", "transfer_backend",
        "deterministic",
    )  # fmt: skip
    return {name: getattr(settings, name) for name in names}


def announced(settings: RolloutSettings, url: str) -> Announcer:
    """A context in which the replica at `url` is in the registry of the cluster that this process has joined."""
    from wire.placement import announcer  # Ray is not imported before it is needed

    return announcer(REPLICA, url, facts_of(settings))


class Joiners(Protocol):
    """The fleet, as far as replicas join it; `rollout_server.fleet.Fleet` is the real one."""

    @property
    def joined(self) -> Collection[str]:
        """URLs of those that were joined and not removed, also of those that are away just now."""

    async def add(self, url: str) -> Any:
        """Take in the server at `url`. Raises ServiceError where it does not answer, or refuses the token."""

    async def remove(self, url: str) -> None:
        """Let it go; it may finish what it writes."""


class Finder:
    """Joins what is found in the cluster.

    Args:
        wanted: the run's facts.
        fleet: it joins this.
        found: facts of the replicas that are announced, by URL; it blocks. Raises ServiceError.
        take: takes a replica for this run; the run that has it, where that is another; it blocks. Raises ServiceError.
        say: told who is joined, and once why another is not.
    """

    def __init__(
        self,
        wanted: Facts,
        fleet: Joiners,
        found: Callable[[], dict[str, Facts]],
        take: Callable[[str], str | None],
        say: Callable[[str], None],
    ) -> None:
        self._wanted, self._fleet, self._found, self._take, self._say = wanted, fleet, found, take, say
        self._ours: set[str] = set()  # that this joined, and that are announced still
        self._said: dict[str, str] = {}
        self._leaving: set[asyncio.Task[None]] = set()

    async def watch(self) -> None:
        """Look again and again; runs until cancelled. Where the registry is away, nothing changes meanwhile."""
        try:
            while True:
                with suppress(ServiceError):
                    await self.look()
                await asyncio.sleep(LOOK_EVERY_S)
        finally:
            for task in self._leaving:
                task.cancel()
            await asyncio.gather(*self._leaving, return_exceptions=True)

    async def look(self) -> None:
        """Join who has come.

        Raises:
            ServiceError: the registry does not answer.
        """
        found = await asyncio.to_thread(self._found)
        for url, facts in found.items():
            if url not in self._ours:
                await self._meet(url, facts)
            elif url in self._fleet.joined:  # else somebody let it go: it is free for others, and not joined again
                await self._keep(url)
        self._ours &= found.keys()
        self._said = {url: reason for url, reason in self._said.items() if url in found}

    async def _keep(self, url: str) -> None:
        """Take it again; where this run was silent for so long that another has it, let it go."""
        holder = await asyncio.to_thread(self._take, url)
        if holder is not None:
            self._ours.discard(url)
            self._not_joined(url, f"writes for {holder}")
            task = asyncio.create_task(self._fleet.remove(url))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def _meet(self, url: str, facts: Facts) -> None:
        other = ", ".join(
            f"{name} {facts.get(name)!r}" for name in self._wanted if facts.get(name) != self._wanted[name]
        )
        if other:
            self._not_joined(url, f"has {other}")
            return
        holder = await asyncio.to_thread(self._take, url)
        if holder is not None:
            self._not_joined(url, f"writes for {holder}")
            return
        if url not in self._fleet.joined:
            try:
                await self._fleet.add(url)
            except ServiceError as error:
                self._not_joined(url, str(error))
                return
        self._ours.add(url)
        self._say(f"found in the cluster: replica {url}")

    def _not_joined(self, url: str, reason: str) -> None:
        if self._said.get(url) != reason:
            self._said[url] = reason
            self._say(f"found in the cluster, and not joined: replica {url} {reason}")
