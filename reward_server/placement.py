"""How the reward service is placed on a Ray cluster: one actor that supervises `reward_server.main` on its node."""

from __future__ import annotations

from typing import Any

import ray

from reward_server.config import RewardSettings
from reward_server.fetch_state import FetchState
from reward_server.service import STOP_GRACE_S, service_process
from reward_server.weights import Weights
from wire.engine import resolve_device
from wire.placement import Room, at_node
from wire.process import HostedServer


class RewardHost(HostedServer):
    """The actor of the service; it makes the process on the node where it will run, so that its port is that node's."""

    def __init__(self, settings: RewardSettings) -> None:
        super().__init__(lambda: service_process(at_node(settings)), settings.startup_timeout_s, STOP_GRACE_S)
        self._weights = Weights(settings)

    def fetch(self) -> FetchState | None:
        """How far the judge's files are, begun with the first call: before `start`, whose deadline is for loading."""
        return self._weights.look()

    def stop(self) -> None:
        """End the service, and the fetch."""
        self._weights.stop()
        super().stop()


def _gpus(settings: RewardSettings) -> int:
    return settings.judge_servers * settings.judge_tensor_parallel_size * (resolve_device(settings.device) == "cuda")


def room_for_reward_service(settings: RewardSettings) -> Room:
    """A place for the service, on a node with the resource `reward` and the GPUs of its GenRM servers."""
    return Room("the reward service", {"reward": 1, "GPU": _gpus(settings)})


def place_reward_service(settings: RewardSettings, room: Room) -> Any:
    """An actor handle for the service in `room`; nothing is started yet.

    Its two threads let `check` and `stop` be heard while `start` waits for the GenRM to load.
    """
    host = ray.remote(RewardHost).options(
        num_cpus=0,
        num_gpus=_gpus(settings),
        resources={"reward": 1},
        max_concurrency=2,
        scheduling_strategy=room.place(),
    )
    return host.remote(settings)
