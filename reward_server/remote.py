"""A GenRM server on whichever node of a cluster has room for it. Ray-free; `genrm_placement.py` is its door to Ray."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from reward_server.startup import Startup
from wire.errors import ServiceError
from wire.keeper import MAX_EARLY_DEATHS, deaths_in_a_row, pause_after

LOOK_EVERY_S = 1.0
STOP_TIMEOUT_S = 25.0
SEEKS = "waits for a node"

Say = Callable[[str], None]


class Host(Protocol):
    """One life of the server on a node, as `reward_server.genrm_placement` makes it."""

    async def begin(self) -> str:
        """Find a node and start the server there; returns the URL where it will answer. Raises ConfigError or
        ServiceError."""

    async def look(self) -> Startup:
        """How its start goes. Raises ConfigError or ServiceError with its last words where it, or its node, is gone."""

    async def stop(self) -> None:
        """End it and give its place back."""


class RemoteServer:
    """Keeps one server running somewhere: where it or its node dies, another life begins, on another node perhaps.

    Args:
        name: what messages call it.
        place: makes the host of a new life; `say` of its own is told what the cluster lacks.
        startup_timeout_s: deadline of loading.
        say: told of its lives and deaths.
    """

    def __init__(self, name: str, place: Callable[[Say], Host], startup_timeout_s: float, say: Say) -> None:
        self.name = name
        self.url: str | None = None
        self.startup = Startup(SEEKS)
        self._place, self._startup_timeout_s, self._say = place, startup_timeout_s, say
        self._is_ending = False
        self._life = asyncio.create_task(self._live(), name=f"life of {name}")

    async def tend(self) -> None:
        """Raises ConfigError or ServiceError where it died too often, or its settings are wrong."""
        if self._life.done():
            self._life.result()

    async def stop(self) -> None:
        """End it and give its place back; once more has no effect."""
        if not self._is_ending:  # a second cancellation would break off the end itself
            self._is_ending = True
            self._life.cancel()
        await asyncio.wait([self._life])
        if not self._life.cancelled():
            self._life.exception()  # whoever stops it has no use for it

    async def _live(self) -> None:
        deaths = 0
        while True:
            began = time.monotonic()
            try:
                await self._one_life()
            except ServiceError as error:
                deaths = deaths_in_a_row(deaths, time.monotonic() - began)
                if deaths >= MAX_EARLY_DEATHS:
                    raise ServiceError(f"{error} {self.name} died {deaths} times in a row.") from error
                pause_s = pause_after(deaths)
                self._say(f"{error} {self.name} is started again in {pause_s:.0f} s.")
                self.startup = Startup(f"starts again: {error}")
                await asyncio.sleep(pause_s)

    async def _one_life(self) -> None:
        self.startup = Startup(SEEKS)
        host = self._place(self._lacks)
        try:
            self.url = await host.begin()
            await self._watched(host)
        finally:
            self.url = None
            with suppress(TimeoutError):
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await host.stop()

    def _lacks(self, what: str) -> None:
        self.startup = Startup(f"{SEEKS}: {what}")
        self._say(what)

    async def _watched(self, host: Host) -> None:
        """Look after it until it is gone."""
        loading_since = time.monotonic()
        while True:
            with suppress(TimeoutError):  # a node that is cut off: the pool's probes say whether the server answers
                before, self.startup = self.startup, await host.look()
                if before.load_s is None and self.startup.load_s is not None:
                    self._say(f"{self.name} {self.url} is {self.startup.line}")
            if self.startup.is_fetching:  # that has a deadline of its own
                loading_since = time.monotonic()
            elif self.startup.load_s is None and time.monotonic() - loading_since > self._startup_timeout_s:
                self.startup = replace(self.startup, doing="is given up")
                raise ServiceError(f"{self.name} did not answer {self.url} within {self._startup_timeout_s:.0f} s.")
            await asyncio.sleep(LOOK_EVERY_S)
