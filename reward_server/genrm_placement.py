"""How a further GenRM server is placed on a Ray cluster: an actor that supervises one vLLM server on its node."""

from __future__ import annotations

import asyncio
import ipaddress
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import ray

from reward_server.config import RewardSettings
from reward_server.genrm import genrm_process
from reward_server.startup import GenrmProcess, Startup
from wire import placement
from wire.address import NODE
from wire.errors import ConfigError, ServiceError
from wire.placement import Room, at_node
from wire.signals import kept_handlers

BEGIN_TIMEOUT_S = 60.0  # the actor's process starts and imports
LOOK_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 20.0

Make = Callable[[RewardSettings, int], GenrmProcess]
made_by_ray = partial(genrm_process, shares_host=False)
_JOINING = threading.Lock()  # several servers may be placed at once, each from a thread of its own


class GenrmHost:
    """The actor of GenRM server `index`; it makes the process on its node, so that its port is that node's."""

    def __init__(self, settings: RewardSettings, index: int, make: Make) -> None:
        self._settings, self._index, self._make = settings, index, make
        self._process: GenrmProcess | None = None

    def begin(self) -> str:
        """Start the server; returns its URL at once. Raises ConfigError where this host cannot serve it."""
        self._process = self._make(at_node(self._settings), self._index)
        self._process.start()
        return self._process.url

    def look(self) -> Startup:
        """How its start goes. Raises ConfigError or ServiceError with its last words where it has ended."""
        assert self._process is not None
        if not self._process.is_alive():
            self._process.raise_fetch_failure()
            raise ServiceError(self._process.obituary())
        if self._process.startup().load_s is None:
            self._process.is_healthy(timeout_s=1.0)
        return self._process.startup()

    def stop(self) -> None:
        """End the server."""
        if self._process is not None:
            self._process.stop()


class PlacedGenrm:
    """GenRM server `index` on whichever node has the resource `reward` free, and its GPUs; nothing is asked for yet.

    Args:
        settings: the service's, with `ray_address`.
        index: from 0.
        say: told what is missing where no node has room.
        make: makes its process on the node.
    """

    def __init__(
        self, settings: RewardSettings, index: int, say: Callable[[str], None], make: Make = made_by_ray
    ) -> None:
        if not ipaddress.ip_address(settings.bind_address).is_loopback:
            settings = replace(settings, bind_address=NODE)  # the service's own address is another node's
        self._settings, self._index, self._say, self._make = settings, index, say, make
        self._name = f"judge-{index}"
        self._room: Room | None = None
        self._actor: Any = None

    async def begin(self) -> str:
        """Find a node and start the server there; returns the URL where it will answer.

        Raises:
            ConfigError: the cluster does not answer, or the node cannot serve what the settings say.
            ServiceError: no node had room within `startup_timeout_s`, or the node was lost.
        """
        settings = self._settings
        with kept_handlers():
            await asyncio.to_thread(join, str(settings.ray_address))
        gpus = settings.gpus_per_genrm
        room = self._room = Room(self._name, {"reward": 1, "GPU": gpus})
        try:
            async with asyncio.timeout(settings.startup_timeout_s):
                await room.found(self._say)
        except TimeoutError:
            raise ServiceError(f"{self._name} found no node within {settings.startup_timeout_s:.0f} s.") from None
        host = ray.remote(GenrmHost).options(
            num_cpus=0, num_gpus=gpus, resources={"reward": 1}, max_concurrency=2, scheduling_strategy=room.place()
        )
        self._actor = host.remote(settings, self._index, self._make)
        try:
            async with asyncio.timeout(BEGIN_TIMEOUT_S):
                return str(await self._ask("begin"))
        except TimeoutError:
            raise ServiceError(f"the host of {self._name} did not answer within {BEGIN_TIMEOUT_S:.0f} s.") from None

    async def look(self) -> Startup:
        """As `remote.Host.look`. Raises TimeoutError where the node does not answer."""
        async with asyncio.timeout(LOOK_TIMEOUT_S):
            found = await self._ask("look")
        assert isinstance(found, Startup)
        return found

    async def stop(self) -> None:
        """End the server and give its place back, so that the autoscaler may take the node away."""
        if self._actor is not None:
            with suppress(ConfigError, ServiceError, TimeoutError):
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await self._ask("stop")
            ray.kill(self._actor)
        if self._room is not None:
            self._room.give_back()

    async def _ask(self, method: str) -> Any:
        try:
            return await getattr(self._actor, method).remote()
        except ray.exceptions.RayError as error:  # the actor's own error in Ray's wrapping, or the actor is gone
            cause = getattr(error, "cause", None)
            if isinstance(cause, ConfigError):
                raise ConfigError(str(cause)) from error
            raise ServiceError(str(cause or f"{self._name}: its host is gone ({type(error).__name__}).")) from error


def join(ray_address: str) -> None:
    """As `wire.placement.join`, unless this process has joined already: for the registry, or for another server."""
    with _JOINING:
        if not ray.is_initialized():
            placement.join(ray_address)
