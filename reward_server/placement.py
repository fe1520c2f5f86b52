"""How the reward service is placed on a Ray cluster: one actor that supervises `reward_server.main` on its node."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from wire.process import HostedServer, ServerProcess, free_port, url_of

STOP_GRACE_S = 30.0  # the service ends its own GenRM first; killed before that, it would leave it behind


class RewardHost(HostedServer):
    """The actor: starts the service on its own node, says where it is, ends it.

    Args:
        argv: the service's flags, such as `["--config", FILE]`; address and port are appended here.
        bind_address: address to listen on; None: the node's own in the cluster.
        log_dir: folder of `reward.log`.
        startup_timeout_s: deadline of the start, the loading of the GenRM included.
    """

    def __init__(self, argv: Sequence[str], bind_address: str | None, log_dir: str, startup_timeout_s: float) -> None:
        address = bind_address or ray.util.get_node_ip_address()
        port = free_port(address)
        command = [sys.executable, "-m", "reward_server.main", *argv]
        command += ["--bind_address", address, "--reward_port", str(port), "--log_dir", log_dir]
        command += ["--startup_timeout_s", str(startup_timeout_s)]
        log, advice = Path(log_dir) / "reward.log", "see judge-0.log beside reward.log"
        process = ServerProcess("reward service", command, dict(os.environ), log, url_of(address, port), advice)
        super().__init__(process, startup_timeout_s, STOP_GRACE_S)


def place_reward_service(
    argv: Sequence[str],
    *,
    num_gpus: float,
    resources: Mapping[str, float],
    bind_address: str | None,
    log_dir: str,
    startup_timeout_s: float,
) -> Any:
    """An actor handle for the service, on a node with `num_gpus` GPUs and `resources`; nothing is started yet.

    Its two threads let `check` and `stop` be heard while `start` waits for the GenRM to load.
    """
    host = ray.remote(RewardHost).options(num_cpus=0, num_gpus=num_gpus, resources=dict(resources), max_concurrency=2)
    return host.remote(list(argv), bind_address, log_dir, startup_timeout_s)
