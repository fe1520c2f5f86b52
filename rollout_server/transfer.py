"""Weight transfer over Gloo, for CPUs: the messages of vLLM's two engine seams, and their registration.

The same hand-shake as vLLM's own `nccl` backend: the learner's rank 0 is rank 0 of the transfer group, every worker of
every replica follows, and the weights travel as flat byte buckets that both sides cut in the same way.

    learner rank 0   --bucket 0--> all workers --bucket 1--> ...     one broadcast a bucket feeds the whole fleet

`gloo_sender.py` is the learner's side, `gloo_worker.py` the replica's, `buckets.py` the cut, `gloo_group.py` the wire.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import torch
from vllm.distributed.weight_transfer.base import (
    ParamMeta,
    TrainerInitInfo,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory

from rollout_server.waiting import Deadline


@dataclass
class GlooInitInfo(WeightTransferInitInfo):
    """Learner -> worker: where the group meets and how the stream is cut. Times in seconds, sizes in bytes.

    `timeout_s` is what the worker may take to join. `stream_bytes` is the size of a push: the worker reserves its
    staging area ahead, `staging_bytes` at most.
    """

    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    bucket_bytes: int
    staging_bytes: int
    stream_bytes: int
    verify: bool
    timeout_s: float = 0.0


@dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):
    """Learner -> worker: the parameters of one push, in the order they are sent. `push` counts the group's pushes;
    `timeout_s` is what the worker may take to receive it, in seconds."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]
    push: int = 0
    timeout_s: float = 0.0

    @classmethod
    def of(cls, metadata: Sequence[ParamMeta], push: int) -> Self:
        """The message for these parameters."""
        dtypes = [str(meta.dtype).removeprefix("torch.") for meta in metadata]
        return cls([meta.name for meta in metadata], dtypes, [list(meta.shape) for meta in metadata], push)

    def metadata(self) -> list[ParamMeta]:
        """The same as vLLM's parameter descriptions."""
        rows = zip(self.names, self.dtype_names, self.shapes, strict=True)
        return [ParamMeta(name, getattr(torch, dtype), tuple(shape)) for name, dtype, shape in rows]


@dataclass
class GlooTrainerInitInfo(TrainerInitInfo):
    """What the learner's rank 0 needs to open the transfer group. Sizes in bytes; `master_port` 0 takes a free one."""

    backend: ClassVar[str] = "gloo"

    master_address: str
    world_size: int
    bucket_bytes: int
    staging_bytes: int
    verify: bool
    master_port: int = 0


class SyncClient(Protocol):
    """vLLM's four-call control plane as our engines use it.

    A call blocks until every member has answered, and raises ServiceError where one failed. `deadline` is that of the
    call under way; `on_failure` is called, in a thread of the client's, as soon as the first member is known to have
    failed. `update_weights` adds `timeout_s` to its message, and so does `init_weight_transfer_engine`.
    """

    deadline: Deadline
    on_failure: Callable[[], None]

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Every member joins the transfer group."""

    def start_weight_update(self) -> None:
        """Every member gets ready."""

    def update_weights(self, update_info: Any) -> None:
        """Every member receives."""

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Every member puts what it received to use."""


def register_worker_engines() -> None:
    """Make our engines known to vLLM's factory in a server's process: `gloo`, and a guarded `nccl` for vLLM's own."""
    _register(
        WeightTransferEngineFactory,
        gloo=("rollout_server.gloo_worker", "GlooWeightTransferEngine"),
        nccl=("rollout_server.nccl_guard", "GuardedNCCLWeightTransferEngine"),
    )


def register_trainer_engines() -> None:
    """The same on the learner's side."""
    _register(
        WeightTransferTrainerFactory,
        gloo=("rollout_server.gloo_sender", "GlooTrainerWeightTransferEngine"),
        nccl=("rollout_server.nccl_guard", "GuardedNCCLTrainerWeightTransferEngine"),
    )


def _register(factory: Any, **engines: tuple[str, str]) -> None:
    """Register module and class of each backend, in the place of what has the name."""
    for name, (module, engine) in engines.items():
        factory._registry.pop(name, None)
        factory.register_engine(name, module, engine)
