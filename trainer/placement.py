"""The trainer's door to Ray: the cluster of a run, and the learner ranks on it."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

from trainer.config import RunSettings
from trainer.niceness import rank_gives_way
from wire.address import NODE
from wire.claim import Owner
from wire.engine import resolve_device
from wire.errors import ServiceError
from wire.placement import RayCluster, Room, at_node, joined_cluster
from wire.signals import kept_handlers

OBJECT_STORE_BYTES = 256 * 2**20  # batches and texts; weights never pass through it
MAX_REPLICAS = 1024  # of an embedded cluster: GPUs and memory are its real limits
GPU_DETERMINISM = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "FLASH_ATTENTION_DETERMINISTIC": "1"}


@contextmanager
def ray_cluster(settings: RunSettings) -> Iterator[Owner]:
    """Join the cluster at `ray_address`, or hold an embedded one that ends with the block; yields this driver's life
    in it.

    An embedded cluster is made private by `trainer.environment`, before this module is imported.

    Raises:
        ConfigError: no cluster answers at `ray_address`.
    """
    if settings.ray_address:
        with joined_cluster(settings.ray_address):
            yield RayCluster().owner(settings.output_dir, settings.orphan_timeout_s)
        return
    _start_embedded(settings)
    try:
        yield RayCluster().owner(settings.output_dir, settings.orphan_timeout_s)
    finally:
        ray.shutdown()


def _start_embedded(settings: RunSettings) -> None:
    with kept_handlers():
        ray.init(
            address="local",
            include_dashboard=False,
            num_cpus=max(os.cpu_count() or 1, settings.num_learner_ranks),
            resources={"rollout": MAX_REPLICAS, "reward": 1, "learner": settings.num_learner_ranks},
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )


async def place_learner(settings: RunSettings, say: Callable[[str], None]) -> tuple[list[Any], str]:
    """An actor handle for each learner rank, packed on nodes with the resource `learner`; and where they meet: the
    address of rank 0's node that is to be listened on.

    Args:
        settings: the run's.
        say: told what is missing where the cluster has no room.

    Raises:
        ServiceError: the cluster has no room for them within `startup_timeout_s`.
    """
    num = settings.num_learner_ranks
    each = {"learner": 1, "GPU": int(resolve_device(settings.device) == "cuda")}
    room = Room("the learner", each, num)
    try:
        async with asyncio.timeout(settings.startup_timeout_s):
            await room.found(say)
    except TimeoutError:
        raise ServiceError(
            f"no room for {num} learner ranks: each needs {each}, the cluster has {ray.available_resources()} free"
        ) from None
    ranks = await asyncio.to_thread(_ranks_in, room, settings)  # its imports take seconds
    return ranks, room.address() if settings.bind_address == NODE else settings.bind_address


def _ranks_in(room: Room, settings: RunSettings) -> list[Any]:
    from trainer.learner import LearnerRank

    is_cuda = resolve_device(settings.device) == "cuda"
    environment = {"TOKENIZERS_PARALLELISM": "false"}
    if settings.deterministic:
        environment |= GPU_DETERMINISM
    if not is_cuda:
        # The number of threads cuts the sums, so a deterministic run does not take it from the host.
        share = max(1, (os.cpu_count() or 1) // settings.num_learner_ranks)
        threads = 1 if settings.deterministic else settings.learner_threads or share
        environment |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    if settings.bind_address.startswith("127."):
        environment |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}

    class PlacedRank(LearnerRank):
        """A rank that can send weights on a thread of its own, beside a no-grad pass."""

        def __init__(self, settings: RunSettings, rank: int) -> None:
            super().__init__(at_node(settings), rank)
            rank_gives_way(settings.learner_niceness)

        @ray.method(concurrency_group="transfer")
        def open_transfer_beside(self, *arguments: Any) -> Any:
            """`open_transfer`, beside other work."""
            return self.open_transfer(*arguments)

        @ray.method(concurrency_group="transfer")
        def send_weights_beside(self, *arguments: Any) -> Any:
            """`send_weights`, beside other work."""
            return self.send_weights(*arguments)

    # Ray's stub of `remote` lacks the argument.
    actor: Any = ray.remote(concurrency_groups={"transfer": 1})(PlacedRank)  # type: ignore[call-overload]
    return [
        actor.options(
            num_cpus=0,
            num_gpus=1 if is_cuda else 0,
            resources={"learner": 1},
            runtime_env={"env_vars": environment},
            scheduling_strategy=room.place(rank),
        ).remote(settings, rank)
        for rank in range(settings.num_learner_ranks)
    ]
