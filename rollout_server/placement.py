"""How replicas are placed on a Ray cluster: one actor a replica, each supervising one vLLM server on its node."""

from __future__ import annotations

from typing import Any

import ray

from rollout_server.config import RolloutSettings
from rollout_server.replica import replica_process
from wire.engine import resolve_device
from wire.errors import ServiceError


class ReplicaHost:
    """The actor: starts the server on its own node, says where it is, ends it."""

    def __init__(self, settings: RolloutSettings, index: int) -> None:
        self._process = replica_process(settings, index)
        self._timeout_s = settings.startup_timeout_s

    def start(self) -> str:
        """Start the server and wait until it answers. Returns its URL; raises ServiceError as `wait_healthy` does."""
        self._process.start()
        self._process.wait_healthy(self._timeout_s)
        return self._process.url

    def check(self) -> None:
        """Raises ServiceError with the server's last words if it has ended."""
        if not self._process.is_alive():
            raise ServiceError(self._process.obituary())

    def stop(self) -> None:
        """End the server."""
        self._process.stop()


def place_replicas(settings: RolloutSettings) -> list[Any]:
    """An actor handle for each replica of the settings, on nodes with the resource `rollout`; nothing is started yet.

    Two threads an actor let `check` and `stop` be heard while `start` waits for the engine.
    """
    gpus = settings.rollout_tensor_parallel_size if resolve_device(settings.device) == "cuda" else 0
    host = ray.remote(ReplicaHost).options(num_cpus=0, num_gpus=gpus, resources={"rollout": 1}, max_concurrency=2)
    return [host.remote(settings, index) for index in range(settings.replicas)]
