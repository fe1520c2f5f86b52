"""A GenRM server on the service's own host."""

from __future__ import annotations

import asyncio
import sys
import time

from reward_server.startup import GenrmProcess, Startup
from wire.errors import ServiceError
from wire.keeper import Keeper
from wire.ports import release_url

FIRST_START_PATIENCE = 1  # a server that dies before it ever answered has a mistake in its settings, or no memory


class LocalServer:
    """Keeps `process` running."""

    def __init__(self, process: GenrmProcess) -> None:
        self._process, self._keeper = process, Keeper(process, patience=FIRST_START_PATIENCE)
        self.name, self.url = process.name, process.url

    @property
    def startup(self) -> Startup:
        """How its start goes."""
        return self._process.startup()

    async def tend(self) -> None:
        """Start it, or start it again, where that is due.

        Raises:
            ConfigError, ServiceError: it is given up.
        """
        try:
            if await asyncio.to_thread(self._keeper.tend, time.monotonic()):
                print(f"{self.name} {self.url} is {self.startup.line}", file=sys.stderr, flush=True)
        except ServiceError:
            self._process.raise_fetch_failure()
            raise

    async def stop(self) -> None:
        """End it, and let others have its port."""
        await asyncio.to_thread(self._process.stop)
        release_url(self.url)
