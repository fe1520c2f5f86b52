"""How the reward service is placed on a Ray cluster: one actor that supervises `reward_server.main` on its node."""

from __future__ import annotations

from typing import Any

import ray

from reward_server.config import RewardSettings
from reward_server.service import STOP_GRACE_S, service_process
from wire.engine import resolve_device
from wire.process import HostedServer


class RewardHost(HostedServer):
    """The actor of the service; made on the node where it will run, so that its port is that node's."""

    def __init__(self, settings: RewardSettings) -> None:
        super().__init__(service_process(settings), settings.startup_timeout_s, STOP_GRACE_S)


def place_reward_service(settings: RewardSettings) -> Any:
    """An actor handle for the service, on a node with the resource `reward`; nothing is started yet.

    Its two threads let `check` and `stop` be heard while `start` waits for the GenRM to load.
    """
    is_cuda = resolve_device(settings.device) == "cuda"
    gpus = settings.judge_servers * settings.judge_tensor_parallel_size if is_cuda else 0
    host = ray.remote(RewardHost).options(num_cpus=0, num_gpus=gpus, resources={"reward": 1}, max_concurrency=2)
    return host.remote(settings)
