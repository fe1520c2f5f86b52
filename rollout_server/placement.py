"""How replicas are placed on a Ray cluster: one actor a replica, each supervising one vLLM server on its node."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import ray

from rollout_server.config import RolloutSettings
from rollout_server.replica import replica_process
from wire.engine import resolve_device
from wire.errors import ServiceError
from wire.process import HostedServer

STOP_TIMEOUT_S = 25.0


class ReplicaHost(HostedServer):
    """The actor of replica `index`; made on the node where the server will run, so that its port is that node's."""

    def __init__(self, settings: RolloutSettings, index: int) -> None:
        super().__init__(replica_process(settings, index), settings.startup_timeout_s)


class PlacedReplica:
    """Replica `index` on whichever node has the resource `rollout` free; nothing is started yet.

    Two threads of the actor let `check` and `stop` be heard while `start` waits for the engine.
    """

    def __init__(self, settings: RolloutSettings, index: int) -> None:
        gpus = settings.rollout_tensor_parallel_size if resolve_device(settings.device) == "cuda" else 0
        host = ray.remote(ReplicaHost).options(num_cpus=0, num_gpus=gpus, resources={"rollout": 1}, max_concurrency=2)
        self._actor: Any = host.remote(settings, index)
        self._name = f"replica-{index}"

    async def start(self) -> str:
        """Start the server and wait until it answers; returns its URL. Raises ServiceError with its last words."""
        return str(await self._ask(self._actor.start))

    async def check(self) -> None:
        """Raises ServiceError where the server, or its node, is gone."""
        await self._ask(self._actor.check)

    async def stop(self) -> None:
        """End the server and give its place back. A dead actor's server was ended with it."""
        with suppress(ServiceError, TimeoutError):
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._ask(self._actor.stop)
        ray.kill(self._actor)

    async def _ask(self, method: Any) -> Any:
        try:
            return await method.remote()
        except asyncio.CancelledError:
            raise
        except ray.exceptions.RayError as error:  # the actor's own error in Ray's wrapping, or the actor is gone
            raise ServiceError(str(getattr(error, "cause", None) or f"{self._name}: {error}")) from error
