"""How replicas are placed on a Ray cluster: one actor a replica, each supervising one vLLM server on its node."""

from __future__ import annotations

from typing import Any

import ray

from rollout_server.config import RolloutSettings
from rollout_server.replica import replica_process
from wire.engine import resolve_device
from wire.process import HostedServer


class ReplicaHost(HostedServer):
    """The actor of replica `index`; made on the node where the server will run, so that its port is that node's."""

    def __init__(self, settings: RolloutSettings, index: int) -> None:
        super().__init__(replica_process(settings, index), settings.startup_timeout_s)


def place_replicas(settings: RolloutSettings) -> list[Any]:
    """An actor handle for each replica of the settings, on nodes with the resource `rollout`; nothing is started yet.

    Two threads an actor let `check` and `stop` be heard while `start` waits for the engine.
    """
    gpus = settings.rollout_tensor_parallel_size if resolve_device(settings.device) == "cuda" else 0
    host = ray.remote(ReplicaHost).options(num_cpus=0, num_gpus=gpus, resources={"rollout": 1}, max_concurrency=2)
    return [host.remote(settings, index) for index in range(settings.replicas)]
