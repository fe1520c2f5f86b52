"""The learner's side of a push over Gloo."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, Self

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import TrainerWeightTransferEngine, WeightSource

from rollout_server.buckets import Bucket, cut_into_buckets, write_checksum
from rollout_server.gloo_group import GlooGroup
from rollout_server.meeting import Meeting
from rollout_server.transfer import GlooInitInfo, GlooTrainerInitInfo, GlooUpdateInfo, SyncClient
from rollout_server.waiting import Deadline, TransferBroken, in_background, wait_for

BUFFERED_BYTES = 2**27  # of the sender's memory, where two buckets do not take more
MAX_BUFFERS = 8


class GlooTrainerWeightTransferEngine(TrainerWeightTransferEngine[GlooTrainerInitInfo]):
    """Rank 0's engine. It packs one bucket while the one before is on the wire.

    Its calls end by the client's deadline, and at once when a member is known to have failed; the group is closed then.
    """

    init_info_cls = GlooTrainerInitInfo
    client: SyncClient

    def __init__(self, info: GlooTrainerInitInfo, client: SyncClient, source: WeightSource) -> None:
        super().__init__(client=client, source=source, is_sender=True)
        self._info, self._metadata = info, source.metadata()
        self._buckets = cut_into_buckets(self._metadata, info.bucket_bytes)
        self._meeting: Meeting | None = None
        self._group: GlooGroup | None = None
        self._buffers: list[Tensor] = []
        self._num_pushes = 0
        self.num_bytes = sum(bucket.num_bytes for bucket in self._buckets)
        self.seconds = self.load_seconds = 0.0

    @classmethod
    def trainer_init(cls, init_info: GlooTrainerInitInfo, *, client: Any, source: WeightSource | None = None) -> Self:
        """Open the group with every worker of the fleet.

        Raises:
            ServiceError: a member failed, or the client's deadline has passed.
        """
        if source is None:
            raise ValueError("the gloo backend sends whole models and needs a WeightSource")
        engine = cls(init_info, client, source)
        try:
            engine._open()
        except BaseException:
            engine.shutdown()
            raise
        return engine

    def _open(self) -> None:
        info, deadline = self._info, self.client.deadline
        meeting = self._meeting = Meeting(info.master_address, deadline, info.master_port)
        self.client.on_failure = meeting.close  # who waits at it learns at once that somebody will not come
        # `timeout_s` is the client's to fill in. The routes return only once all workers are in the group.
        payload = GlooInitInfo(
            *(info.master_address, meeting.port, 1, info.world_size, info.bucket_bytes, info.staging_bytes),
            stream_bytes=self.num_bytes,
            verify=info.verify,
        )
        joined = in_background(lambda: self.client.init_weight_transfer_engine(asdict(payload)))

        def form() -> GlooGroup:
            store = meeting.client(deadline)
            forming = in_background(lambda: GlooGroup(store, 0, info.world_size, deadline))
            wait_for(forming, deadline, meeting.check)
            return forming.result()

        self._group = meeting.gather(info.world_size, deadline, joined, form)
        largest = max(bucket.num_bytes for bucket in self._buckets)
        num = max(2, min(MAX_BUFFERS, BUFFERED_BYTES // largest, len(self._buckets)))
        self._buffers = [torch.zeros(largest, dtype=torch.uint8) for _ in range(num)]

    def send_weights(self) -> None:
        """Push the source's weights to every worker and finish the update.

        Raises:
            ServiceError: a member failed, or the client's deadline has passed.
            ValueError: the source yields something else than it announced.
        """
        deadline = self.client.deadline
        group, meeting = self._group, self._meeting
        if group is None or meeting is None:
            raise TransferBroken("no transfer group is open")
        self.client.on_failure = group.close
        self._num_pushes += 1
        payload = GlooUpdateInfo.of(self._metadata, self._num_pushes)
        received = in_background(lambda: self.client.update_weights(asdict(payload)))
        try:
            ranks, push = range(1, self._info.world_size), self._num_pushes

            def all_say(what: str) -> None:
                meeting.wait_for(ranks, deadline, f"{what}/{push}", lambda: received.done() or group.is_closed)

            outbox = Outbox(group, deadline, lambda: meeting.has_all(ranks, f"ready/{push}"), lambda: all_say("ready"))
            self._broadcast(outbox)
            all_say("arrived")
            self.seconds = time.perf_counter() - outbox.first_byte
            if group.is_closed:
                raise TransferBroken("a member of the transfer group failed")
            meeting.set(f"load/{push}", "1")
            wait_for(received, deadline)
            loaded = [meeting.get(f"loaded/{push}/{rank}") for rank in ranks]
            self.load_seconds = max(map(float, loaded))
        except TransferBroken:
            self.shutdown()  # a worker still in its receive fails now rather than at its deadline
            wait_for(received, deadline)  # its error names the member
            raise
        except BaseException:
            self.shutdown()
            raise

    def _broadcast(self, outbox: Outbox) -> None:
        """Send bucket after bucket. Others are gathered and packed while one is on the wire."""
        assert self.source is not None
        is_live = hasattr(self.source, "live")
        stream = iter(self.source.live() if is_live else self.source)  # type: ignore[attr-defined]  # asked just now
        for bucket in self._buckets:
            outbox.make_room(len(self._buffers))
            buffer = self._buffers[bucket.index % len(self._buffers)][: bucket.num_bytes]
            pack(bucket, stream, buffer, is_live=is_live)
            if self._info.verify:
                write_checksum(bucket, buffer)
            outbox.put(buffer)
        outbox.finish()
        next(stream, None)  # runs the source to its end, as the other ranks do

    def shutdown(self) -> None:
        """Close the group."""
        group, meeting = self._group, self._meeting
        self._group = self._meeting = None
        if group is not None:
            group.close()
        if meeting is not None:
            meeting.close()


class Outbox:
    """Packed buckets on their way, in order. Those that are packed while the replicas get ready wait here.

    Args:
        group: to all of whose ranks they go.
        deadline: of the push.
        are_ready: whether all replicas are, by now.
        wait_ready: returns when they are.
    """

    def __init__(
        self, group: GlooGroup, deadline: Deadline, are_ready: Callable[[], bool], wait_ready: Callable[[], None]
    ) -> None:
        self._group, self._deadline, self._are_ready, self._wait_ready = group, deadline, are_ready, wait_ready
        self._packed: list[Tensor] = []
        self._sent: deque[Any] = deque()
        self.first_byte = 0.0  # when it left, by time.perf_counter

    def make_room(self, num_buffers: int) -> None:
        """Wait until one of `num_buffers` is free. Raises TransferBroken where a send fails."""
        if len(self._packed) == num_buffers:
            self._send()
        if len(self._packed) + len(self._sent) == num_buffers:
            self._group.wait(self._sent.popleft(), self._deadline)

    def put(self, buffer: Tensor) -> None:
        """Send it, or keep it until the replicas are ready."""
        self._packed.append(buffer)
        if self.first_byte or self._are_ready():
            self._send()

    def finish(self) -> None:
        """Wait until all is sent."""
        self._send()
        while self._sent:
            self._group.wait(self._sent.popleft(), self._deadline)

    def _send(self) -> None:
        if not self.first_byte:
            self._wait_ready()
            self.first_byte = time.perf_counter()
        self._sent.extend(self._group.broadcast(buffer, self._deadline) for buffer in self._packed)
        self._packed = []


def pack(bucket: Bucket, stream: Iterator[tuple[str, Tensor]], buffer: Tensor, *, is_live: bool) -> None:
    """Copy the stream's next tensors to their places in `buffer`, converted to the wire's type where they are live.

    Raises:
        ValueError: a tensor is not what was announced. A stream that differs from its description would be cut
            differently on each side and load as garbage.
    """
    for meta, view in zip(bucket.metas, bucket.views(buffer), strict=True):
        name, tensor = next(stream, ("nothing more", torch.empty(0)))
        dtype = meta.dtype if is_live else tensor.dtype
        if (name, dtype, tuple(tensor.shape)) != (meta.name, meta.dtype, meta.shape):
            raise ValueError(f"the source yields {name} {tensor.dtype} {tuple(tensor.shape)} where it announced {meta}")
        view.copy_(tensor)
