"""The GenRM servers that the service starts itself: kept running, more or fewer of them on demand.

The first `judge_servers` are on the service's own host; with a Ray cluster those beyond are wherever it has room.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Protocol

from reward_server.config import RewardSettings
from reward_server.fetch_state import FetchState
from reward_server.genrm import genrm_process
from reward_server.local import LocalServer
from reward_server.pool import Pool
from reward_server.remote import Host, RemoteServer, Say
from reward_server.startup import GenrmProcess, Startup
from wire.errors import ConfigError, ServiceError


class Kept(Protocol):
    """A server that is kept running, here or elsewhere. `url` is None where it has no node yet."""

    name: str

    @property
    def url(self) -> str | None:
        """Where it answers, or will."""

    @property
    def startup(self) -> Startup:
        """How its start goes, or went."""

    async def tend(self) -> None:
        """Do what is due. Raises ConfigError or ServiceError where it is given up."""

    async def stop(self) -> None:
        """End it."""


class StartedServers:
    """Keeps `count` GenRM servers running and the pool told of them.

    Args:
        settings: model, device, limits.
        pool: takes each server in.
        make: makes the process of server `index`; raises ConfigError where the host has no room for it.
        place: makes the host of server `index` in a cluster; None where there is none, and all are on this host.
    """

    def __init__(
        self,
        settings: RewardSettings,
        pool: Pool,
        make: Callable[[RewardSettings, int], GenrmProcess] = genrm_process,
        place: Callable[[int, Say], Host] | None = None,
    ) -> None:
        self._settings, self._pool, self._make, self._place = settings, pool, make, place
        self._kept: dict[int, Kept] = {}
        self._told: dict[int, str] = {}  # the URL under which the pool has a server
        self._retiring: dict[asyncio.Task[None], Kept] = {}

    @property
    def count(self) -> int:
        """Servers that are kept running."""
        return len(self._kept)

    def owns(self, url: str) -> bool:
        """Whether the server at `url` is one of them."""
        return any(kept.url == url.rstrip("/") for kept in self._kept.values())

    @property
    def unplaced(self) -> list[tuple[str, Startup]]:
        """Names of those that have no node yet, and what they wait for."""
        return [(kept.name, kept.startup) for kept in self._kept.values() if kept.url is None]

    @property
    def fetch(self) -> FetchState | None:
        """How far the files of the first are that fetches, or has fetched; None where none does."""
        states = [state for kept in self._kept.values() if (state := kept.startup.fetch) is not None]
        return next((state for state in states if state.is_under_way), states[0] if states else None)

    def resize(self, count: int) -> None:
        """Make them `count`: new ones start with the next `tend`; the last ones finish what they have and are ended.

        Raises:
            ConfigError: this host has no room for so many.
        """
        free = [index for index in range(count + self.count) if index not in self._kept]
        self._kept |= {index: self._new(index) for index in free[: max(0, count - self.count)]}
        self._tell_pool()
        for index in sorted(self._kept)[max(count, 0) :]:
            kept = self._kept.pop(index)
            task = asyncio.create_task(self._retire(kept, self._told.pop(index, None)))
            self._retiring[task] = kept
            task.add_done_callback(self._retiring.pop)

    def _new(self, index: int) -> Kept:
        place = self._place
        if place is None or index < self._settings.judge_servers:
            return LocalServer(self._make(self._settings, index))
        timeout_s = self._settings.startup_timeout_s
        return RemoteServer(f"judge-{index}", lambda say: place(index, say), timeout_s, _say)

    async def tend(self) -> None:
        """Start and restart what is due. To be called again and again.

        Raises:
            ConfigError, ServiceError: a server is given up and there is no other; the message carries its last words.
                Where there are others the service goes on with them, and says so on stderr.
        """
        for index, kept in list(self._kept.items()):
            try:
                await kept.tend()
            except (ConfigError, ServiceError) as error:
                self._kept.pop(index, None)
                await self._forget(self._told.pop(index, None))
                await kept.stop()
                if not self._pool.servers and not self._kept:
                    raise
                _say(f"{error} The service goes on without it.")
        for gone in self._tell_pool():
            await self._forget(gone)

    def _tell_pool(self) -> list[str]:
        """Give the pool the URLs of those that have one; returns those that are no server's any more."""
        gone = []
        for index, kept in self._kept.items():
            before = self._told.get(index)
            if before is not None and before != kept.url:
                gone.append(self._told.pop(index))
            if kept.url is not None:
                if index not in self._told:
                    self._told[index] = kept.url
                    self._pool.add(kept.url)
                self._pool.note_startup(kept.url, kept.startup)
        return gone

    async def _forget(self, url: str | None) -> None:
        if url is not None:
            await self._pool.remove(url, deadline_s=0.0)

    async def stop(self) -> None:
        """End all."""
        kept = [*self._kept.values(), *self._retiring.values()]
        self._kept.clear()
        retiring = list(self._retiring)
        for task in retiring:
            task.cancel()
        await asyncio.gather(*retiring, return_exceptions=True)
        await asyncio.gather(*(server.stop() for server in kept))

    async def _retire(self, kept: Kept, url: str | None) -> None:
        try:
            if url is not None:
                await self._pool.remove(url, self._settings.judge_timeout_s)
        finally:
            await kept.stop()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
