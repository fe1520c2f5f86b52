"""Weight transfer over Gloo: vLLM's two engine seams, for CPUs.

The same hand-shake as vLLM's own `nccl` backend: the learner's rank 0 is rank 0 of the transfer group, every worker of
every replica follows, and the weights travel as flat byte buckets that both sides cut in the same way.

    learner rank 0   --bucket 0--> all workers --bucket 1--> ...     one broadcast a bucket feeds the whole fleet

Symbols: a *bucket* is a list of consecutive parameters whose bytes together pass `bucket_bytes`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch.distributed import BroadcastOptions
from vllm.distributed.utils import stateless_init_torch_distributed_process_group
from vllm.distributed.weight_transfer.base import (
    ParamMeta,
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    VLLMWeightSyncClient,
    WeightSource,
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

from rollout_server.rendezvous import bound_socket
from wire.errors import ServiceError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass
class GlooInitInfo(WeightTransferInitInfo):
    """Learner -> worker: where the group meets and how the stream is cut. Times in seconds, sizes in bytes."""

    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    bucket_bytes: int
    timeout_s: float


@dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):
    """Learner -> worker: the parameters of one push, in the order they are sent."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]

    def metadata(self) -> list[ParamMeta]:
        """The same as vLLM's parameter descriptions."""
        rows = zip(self.names, self.dtype_names, self.shapes, strict=True)
        return [ParamMeta(name, getattr(torch, dtype), tuple(shape)) for name, dtype, shape in rows]


@dataclass
class GlooTrainerInitInfo(TrainerInitInfo):
    """What the learner's ranks need to open the transfer group; `rank` is the learner rank."""

    backend: ClassVar[str] = "gloo"

    master_address: str
    world_size: int
    bucket_bytes: int
    timeout_s: float


def cut_into_buckets(metadata: Sequence[ParamMeta], bucket_bytes: int) -> Iterator[list[ParamMeta]]:
    """Consecutive parameters, a bucket closed by the parameter that brings it to `bucket_bytes` or more."""
    bucket: list[ParamMeta] = []
    size = 0
    for meta in metadata:
        bucket.append(meta)
        size += num_bytes(meta)
        if size >= bucket_bytes:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket


def num_bytes(meta: ParamMeta) -> int:
    """Bytes of one parameter on the wire."""
    return math.prod(meta.shape) * meta.dtype.itemsize


def pack(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """One flat uint8 tensor with the bytes of all, in order."""
    return torch.cat([tensor.detach().contiguous().view(-1).view(torch.uint8) for tensor in tensors])


def unpack(buffer: torch.Tensor, bucket: Sequence[ParamMeta]) -> Iterator[tuple[str, torch.Tensor]]:
    """The inverse of `pack`: `(name, tensor)` pairs. Each tensor owns its memory: a view at an odd byte offset would
    be misaligned for its type."""
    for meta, chunk in zip(bucket, buffer.split([num_bytes(meta) for meta in bucket]), strict=True):
        yield meta.name, chunk.clone().view(meta.dtype).view(meta.shape)


def broadcast(group: ProcessGroup, buffer: torch.Tensor, timeout_s: float) -> Any:
    """Start a broadcast from rank 0; returns the work to wait for. A peer that is gone fails it within `timeout_s`."""
    options = BroadcastOptions()
    options.rootRank = 0
    options.timeout = timedelta(seconds=timeout_s)
    return group.broadcast([buffer], options)


def _join_group(host: str, port: int, *, timeout_s: float, **arguments: Any) -> ProcessGroup:
    """A Gloo group of its own, beside whatever groups the process has."""
    timeout = timedelta(seconds=timeout_s)
    group = stateless_init_torch_distributed_process_group(host, port, backend="gloo", timeout=timeout, **arguments)
    assert not isinstance(group, tuple)  # (group, store) only when asked for
    return group


class GlooWeightTransferEngine(WeightTransferEngine[GlooInitInfo, GlooUpdateInfo]):
    """The worker's side, loaded by a stock server started with `--weight-transfer-config '{"backend": "gloo"}'`."""

    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._group: ProcessGroup | None = None
        self._info: GlooInitInfo | None = None

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        """Join the transfer group; blocks until all members are there, at most `timeout_s`."""
        self.shutdown()
        parallel = self.parallel_config
        self._info = init_info
        self._group = _join_group(
            init_info.master_address,
            init_info.master_port,
            rank=init_info.rank_offset + parallel.data_parallel_index * parallel.world_size + parallel.rank,
            world_size=init_info.world_size,
            timeout_s=init_info.timeout_s,
        )

    def start_weight_update(self) -> None:
        """Begin vLLM's layer-wise reload: the model takes checkpoint-format weights again."""
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def finish_weight_update(self) -> None:
        """End the reload: fused and re-laid-out weights are rebuilt from what arrived."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive one push. The base class also synchronises an accelerator, which a CPU does not have."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: GlooUpdateInfo) -> None:
        """Receive and load every bucket.

        Raises:
            RuntimeError: no group is open, or a bucket did not arrive within the group's timeout.
        """
        if self._group is None or self._info is None:
            raise RuntimeError("update_weights before init_weight_transfer_engine")
        for bucket in cut_into_buckets(update_info.metadata(), self._info.bucket_bytes):
            buffer = torch.empty(sum(num_bytes(meta) for meta in bucket), dtype=torch.uint8)
            broadcast(self._group, buffer, self._info.timeout_s).wait()
            load_weights: Any = self.model.load_weights
            load_weights(unpack(buffer, bucket))

    def shutdown(self) -> None:
        """Leave the group."""
        if self._group is not None:
            self._group.shutdown()
            self._group = None


class GlooTrainerWeightTransferEngine(TrainerWeightTransferEngine[GlooTrainerInitInfo]):
    """The learner's side. Every rank iterates the source, since gathering is a collective; rank 0 alone sends."""

    init_info_cls = GlooTrainerInitInfo

    def __init__(self, info: GlooTrainerInitInfo, client: VLLMWeightSyncClient, source: WeightSource) -> None:
        super().__init__(client=client, source=source, is_sender=info.is_sender)
        self._info = info
        self._group: ProcessGroup | None = None

    @classmethod
    def trainer_init(
        cls, init_info: GlooTrainerInitInfo, *, client: VLLMWeightSyncClient, source: WeightSource | None = None
    ) -> Self:
        """Open the group with every worker of the fleet. Blocks at most `timeout_s`."""
        if source is None:
            raise ValueError("the gloo backend sends whole models and needs a WeightSource")
        engine = cls(init_info, client, source)
        if engine.is_sender:
            engine._open()
        return engine

    def _open(self) -> None:
        info = self._info
        listener = bound_socket(info.master_address, 0)
        port = listener.getsockname()[1]
        payload = GlooInitInfo(info.master_address, port, 1, info.world_size, info.bucket_bytes, info.timeout_s)
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="init-transfer")
        try:
            # The workers' route returns only once all are in the group, so it runs beside our own entry.
            joined = executor.submit(self.client.init_weight_transfer_engine, asdict(payload))
            self._group = _join_group(
                info.master_address,
                port,
                rank=0,
                world_size=info.world_size,
                timeout_s=info.timeout_s,
                listen_socket=listener,
            )
            joined.result(timeout=info.timeout_s)
        except (OSError, RuntimeError) as error:  # on a timeout vLLM closes the store's socket twice: a bad descriptor
            if joined.done() and (cause := joined.exception()) is not None:
                raise cause from error  # names the replica
            raise ServiceError(
                f"the transfer group of {info.world_size} ranks was not whole within {info.timeout_s:.0f} s ({error})"
            ) from error
        finally:
            executor.shutdown(wait=False)  # a route that hangs must not hold the learner

    def send_weights(self) -> None:
        """Push the source's weights to every worker and finish the update. Called on every learner rank."""
        assert self.source is not None
        metadata = self.source.metadata()
        if not self.is_sender:
            for _ in self.source:
                pass
            return
        assert self._group is not None
        payload = GlooUpdateInfo(
            names=[meta.name for meta in metadata],
            dtype_names=[str(meta.dtype).removeprefix("torch.") for meta in metadata],
            shapes=[list(meta.shape) for meta in metadata],
        )
        self.client.start_weight_update()
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="update-weights")
        try:
            received = executor.submit(self.client.update_weights, asdict(payload))
            self._broadcast(metadata)
            received.result(timeout=self._info.timeout_s)
        except BaseException:
            self.shutdown()  # a worker still in its receive fails now rather than at its deadline
            raise
        finally:
            executor.shutdown(wait=False)
        self.client.finish_weight_update()

    def _broadcast(self, metadata: Sequence[ParamMeta]) -> None:
        """Send bucket after bucket; one is gathered while the one before is on the wire."""
        assert self._group is not None and self.source is not None
        stream = iter(self.source)
        in_flight: tuple[Any, torch.Tensor] | None = None
        for bucket in cut_into_buckets(metadata, self._info.bucket_bytes):
            buffer = pack([self._next(stream, meta) for meta in bucket])
            if in_flight is not None:
                in_flight[0].wait()
            in_flight = (broadcast(self._group, buffer, self._info.timeout_s), buffer)
        if in_flight is not None:
            in_flight[0].wait()
        next(stream, None)  # runs the source to its end, as the other ranks do

    @staticmethod
    def _next(stream: Iterator[tuple[str, torch.Tensor]], meta: ParamMeta) -> torch.Tensor:
        """The next tensor, checked against what the workers were told to expect: a stream that differs from its
        description would be cut differently on each side and load as garbage."""
        name, tensor = next(stream)
        if (name, tensor.dtype, tuple(tensor.shape)) != (meta.name, meta.dtype, meta.shape):
            raise ValueError(f"the source yields {name} {tensor.dtype} {tuple(tensor.shape)} where it announced {meta}")
        return tensor

    def shutdown(self) -> None:
        """Close the group."""
        if self._group is not None:
            self._group.shutdown()
            self._group = None


def register_trainer_engine() -> None:
    """Make `gloo` known to vLLM's trainer-side factory in this process."""
    if "gloo" not in WeightTransferTrainerFactory._registry:
        WeightTransferTrainerFactory.register_engine(
            "gloo", "rollout_server.transfer", "GlooTrainerWeightTransferEngine"
        )
