"""The GenRM servers that the service starts itself: kept running, more or fewer of them on demand."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable

from reward_server.config import RewardSettings
from reward_server.genrm import genrm_process
from reward_server.pool import Pool
from wire.errors import ServiceError
from wire.keeper import Keeper
from wire.ports import release_url
from wire.process import ServerProcess

FIRST_START_PATIENCE = 1  # a server that dies before it ever answered has a mistake in its settings, or no memory


class StartedServers:
    """Keeps `count` GenRM servers running and the pool told of them.

    Args:
        settings: model, device, limits.
        pool: takes each server in.
        make: makes the process of server `index`; raises ConfigError where the host has no room for it.
    """

    def __init__(
        self,
        settings: RewardSettings,
        pool: Pool,
        make: Callable[[RewardSettings, int], ServerProcess] = genrm_process,
    ) -> None:
        self._settings, self._pool, self._make = settings, pool, make
        self._keepers: dict[int, Keeper] = {}
        self._retiring: set[asyncio.Task[None]] = set()

    @property
    def count(self) -> int:
        """Servers that are kept running."""
        return len(self._keepers)

    def owns(self, url: str) -> bool:
        """Whether the server at `url` is one of them."""
        return any(keeper.process.url == url.rstrip("/") for keeper in self._keepers.values())

    def resize(self, count: int) -> None:
        """Make them `count`: new ones start with the next `tend`; the last ones finish what they have and are ended.

        Raises:
            ConfigError: this host has no room for so many.
        """
        free = [index for index in range(count + self.count) if index not in self._keepers]
        made = {index: self._make(self._settings, index) for index in free[: max(0, count - self.count)]}
        for index, process in made.items():
            self._keepers[index] = Keeper(process, patience=FIRST_START_PATIENCE)
            self._pool.add(process.url)
        for index in sorted(self._keepers)[max(count, 0) :]:
            task = asyncio.create_task(self._retire(self._keepers.pop(index)))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    async def tend(self) -> None:
        """Start and restart what is due. To be called again and again.

        Raises:
            ServiceError: a server died too often and the pool has no other; the message carries its last words. Where
                there are others the service goes on with them, and says so on stderr.
        """
        for index, keeper in list(self._keepers.items()):
            try:
                await asyncio.to_thread(keeper.tend, time.monotonic())
            except ServiceError as error:
                self._keepers.pop(index, None)
                await self._pool.remove(keeper.process.url, deadline_s=0.0)
                release_url(keeper.process.url)
                if not self._pool.servers:
                    raise
                print(f"{error} The service goes on without it.", file=sys.stderr, flush=True)

    async def stop(self) -> None:
        """End all."""
        keepers = list(self._keepers.values())
        self._keepers.clear()
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        await asyncio.gather(*(asyncio.to_thread(keeper.process.stop) for keeper in keepers))

    async def _retire(self, keeper: Keeper) -> None:
        try:
            await self._pool.remove(keeper.process.url, self._settings.judge_timeout_s)
        finally:
            await asyncio.to_thread(keeper.process.stop)
            release_url(keeper.process.url)
