"""How replicas are placed on a Ray cluster: one actor a replica, each supervising one vLLM server on its node."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ray

from rollout_server.config import RolloutSettings
from rollout_server.replica import replica_process
from wire.engine import resolve_device
from wire.errors import ConfigError, ServiceError
from wire.placement import Room, at_node
from wire.process import HostedServer

STOP_TIMEOUT_S = 25.0


class ReplicaHost(HostedServer):
    """The actor of replica `index`; it makes the server's process on its node, so that its port is that node's."""

    def __init__(self, settings: RolloutSettings, index: int) -> None:
        super().__init__(lambda: replica_process(at_node(settings), index), settings.startup_timeout_s)


class PlacedReplica:
    """Replica `index` on whichever node has the resource `rollout` free; nothing is asked for yet.

    Two threads of the actor let `check` and `stop` be heard while `start` waits for the engine.

    Args:
        settings: the fleet's.
        index: from 0.
        say: told what is missing where no node has room.
    """

    def __init__(self, settings: RolloutSettings, index: int, say: Callable[[str], None]) -> None:
        self._settings, self._index, self._say = settings, index, say
        self._name = f"replica-{index}"
        self._room: Room | None = None
        self._actor: Any = None

    async def start(self) -> str:
        """Start the server and wait until it answers; returns its URL.

        Raises:
            ConfigError: its node cannot serve what the settings say.
            ServiceError: with the server's last words.
        """
        settings = self._settings
        gpus = settings.rollout_tensor_parallel_size if resolve_device(settings.device) == "cuda" else 0
        room = self._room = Room(self._name, {"rollout": 1, "GPU": gpus})
        await room.found(self._say)
        host = ray.remote(ReplicaHost).options(
            num_cpus=0, num_gpus=gpus, resources={"rollout": 1}, max_concurrency=2, scheduling_strategy=room.place()
        )
        self._actor = host.remote(settings, self._index)
        return str(await self._ask("start"))

    async def check(self) -> None:
        """Raises ServiceError where the server, or its node, is gone."""
        await self._ask("check")

    async def stop(self) -> None:
        """End the server and give its place back. A dead actor's server was ended with it."""
        if self._actor is not None:
            with suppress(ServiceError, TimeoutError):
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await self._ask("stop")
            ray.kill(self._actor)
        if self._room is not None:
            self._room.give_back()

    async def _ask(self, method: str) -> Any:
        if self._actor is None:
            raise ServiceError(f"{self._name} has no node yet")
        try:
            return await getattr(self._actor, method).remote()
        except asyncio.CancelledError:
            raise
        except ray.exceptions.RayError as error:  # the actor's own error in Ray's wrapping, or the actor is gone
            cause = getattr(error, "cause", None)
            if isinstance(cause, ConfigError):
                raise ConfigError(f"{self._name}: {cause}") from error
            raise ServiceError(str(cause or f"{self._name}: {error}")) from error
