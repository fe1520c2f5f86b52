"""The learner's side of a weight push: a source that gathers ZeRO shards, and the sender that reports how a push went.

The source and the control plane (`trainer/fleet_sync.py`) fill vLLM's own seams (`WeightSource`,
`VLLMWeightSyncClient`), so every transfer engine that takes a full-model source works with them; `nccl` is vLLM's under
a guard, `gloo` ours.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from rollout_server.transfer import GlooTrainerInitInfo, register_trainer_engines
from rollout_server.waiting import Deadline
from trainer.fleet_sync import FleetSyncClient
from trainer.lora import ServedWeight
from wire.errors import ServiceError
from wire.membership import Member, TransferReport
from wire.ports import release
from wire.process import free_port


class ZeroWeightSource(WeightSource):
    """The policy's weights as the replicas know them: full tensors, checkpoint names, the served type.

    Args:
        weights: of the Transformers model inside the DeepSpeed engine; adapters are merged on the way out.
        dtype: type on the wire.
        bucket_bytes: ZeRO-3 shards are gathered in groups of about this size, one collective each.
        is_sender: whether this rank needs the values; the others only take part in the gathers.
    """

    def __init__(
        self, weights: Sequence[ServedWeight], dtype: torch.dtype, bucket_bytes: int, *, is_sender: bool
    ) -> None:
        self._weights = list(weights)
        self._dtype, self._bucket_bytes, self._is_sender = dtype, bucket_bytes, is_sender
        self._left: deque[list[ServedWeight]] = deque()
        self._stream: Generator[tuple[str, torch.Tensor], None, None] | None = None
        self.gather_seconds = 0.0  # of this pass: what the source itself took, not who reads from it

    def metadata(self) -> list[ParamMeta]:
        """Names, wire type and full shapes; a ZeRO-3 shard knows its full shape as `ds_shape`, its own is empty."""
        return [
            ParamMeta(weight.name, self._dtype, tuple(getattr(weight.base, "ds_shape", weight.base.shape)))
            for weight in self._weights
        ]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """A pass over all weights, each a copy in the wire's type; on ranks that do not send, empty tensors."""
        self.start_pass()
        self._stream = self._timed(self._copies())
        return self._stream

    def live(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The same without the copy: a tensor is the parameter itself, in its own type, and may be read until the next
        one is asked for. For engines that read on the default stream, or on none."""
        self.start_pass()
        self._stream = self._timed(self._originals())
        return self._stream

    def start_pass(self) -> None:
        """Begin a pass; `finish_pass` then knows how far it came, if at all."""
        self._left = deque(self._buckets())
        self._stream = None
        self.gather_seconds = 0.0

    def finish_pass(self) -> None:
        """Go through what a pass has left.

        All ranks gather the same buckets in the same order. Where the sender gives up in the middle, or before its
        first, the others are still in theirs: without its part they would wait, and then be a bucket out of step.
        """
        if self._stream is not None:
            self._stream.close()  # the bucket in whose middle it stopped is a shard again
        while self._left:
            with self._gathered(self._left.popleft()):
                pass

    def _timed(
        self, stream: Generator[tuple[str, torch.Tensor], None, None]
    ) -> Generator[tuple[str, torch.Tensor], None, None]:
        try:
            while True:
                started = time.perf_counter()
                row = next(stream, None)
                self.gather_seconds += time.perf_counter() - started
                if row is None:
                    return
                yield row
        finally:
            stream.close()  # where it stopped in the middle of a bucket, that is a shard again

    def _copies(self) -> Generator[tuple[str, torch.Tensor], None, None]:
        while self._left:
            bucket = self._left.popleft()
            # The engines iterate on streams of their own. The default stream is where the last step changed the
            # parameters, and where they become shards again.
            with torch.no_grad(), self._gathered(bucket), _default_stream():
                if self._is_sender:
                    rows = [(weight.name, weight.tensor(self._dtype)) for weight in bucket]
                else:
                    rows = [(weight.name, torch.empty(0)) for weight in bucket]
            yield from rows

    def _originals(self) -> Generator[tuple[str, torch.Tensor], None, None]:
        while self._left:
            bucket = self._left.popleft()
            with self._gathered(bucket):
                for weight in bucket:
                    if weight.down is None:
                        yield weight.name, weight.base.detach()
                    else:
                        with torch.no_grad():
                            merged = weight.tensor(self._dtype)
                        yield weight.name, merged

    def _buckets(self) -> Iterator[list[ServedWeight]]:
        bucket: list[ServedWeight] = []
        size = 0
        for weight in self._weights:
            bucket.append(weight)
            # numel() of a partitioned parameter is 0.
            size += getattr(weight.base, "ds_numel", weight.base.numel()) * self._dtype.itemsize
            if size >= self._bucket_bytes:
                yield bucket
                bucket, size = [], 0
        if bucket:
            yield bucket

    @contextmanager
    def _gathered(self, bucket: list[ServedWeight]) -> Iterator[None]:
        """Whole parameters of one bucket, shards again afterwards.

        A gather issued on a stream of an engine's own deadlocks above two ranks: it would race with collectives of the
        default stream. So it runs there, and is finished before it is handed over.
        """
        import deepspeed

        partitioned = [part for weight in bucket for part in weight.parts if hasattr(part, "ds_id")]
        if not partitioned:
            yield
            return
        with _default_stream():
            gathered = deepspeed.zero.GatheredParameters(partitioned)
            gathered.__enter__()
        try:
            yield
        finally:
            with _default_stream():
                gathered.__exit__(None, None, None)


@contextmanager
def _default_stream() -> Iterator[None]:
    if not torch.cuda.is_available():
        yield
        return
    stream = torch.cuda.default_stream()
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()


GLOO_BUCKET_BYTES = 2**25  # more is packed while less is on the wire; the wire itself does not gain from more


@dataclass(frozen=True)
class TransferSettings:
    """How weights travel. Sizes in bytes; `bind_address` is this host's towards the replicas."""

    backend: str
    bind_address: str
    bucket_bytes: int
    staging_bytes: int
    verify: bool = False
    port_range: str | None = None  # of the port where a group meets; None: any free one


class WeightSender:
    """Rank 0's end of a push: opens the transfer group, sends, and tells how each member came out of it.

    What happens at a member, or to the group, is reported and not raised; a source that is not what it announces is.

    Args:
        settings: the run's.
        source: a `ZeroWeightSource`, or another that can finish a pass.
        token: the run's access token.
    """

    def __init__(self, settings: TransferSettings, source: ZeroWeightSource, token: str) -> None:
        self._settings, self._source, self._token = settings, source, token
        self._client: FleetSyncClient | None = None
        self._engine: Any = None
        self._port = 0  # claimed for the meeting, where it must lie in a range

    def open(self, members: Sequence[Member], timeout_s: float) -> TransferReport:
        """Form the transfer group with `members`; the one before, if any, is closed. Returns within `timeout_s`.

        Raises:
            ConfigError: a backend that this source cannot feed, or no free port in `port_range`.
        """
        self.close()
        self._choose_port()
        client = self._client = FleetSyncClient(members, self._token)
        client.begin(Deadline(timeout_s))
        info = trainer_init_info(self._settings, client.world_size, self._port)
        register_trainer_engines()
        error = ""
        try:
            self._engine = WeightTransferTrainerFactory.trainer_init(info, client=client, source=self._source)
        except (ServiceError, OSError) as problem:
            error = str(problem)
        client.settle()
        return TransferReport(client.outcomes, client.problems, error, first=client.first)

    def _choose_port(self) -> None:
        """One that is free now: a former meeting's store may live a little longer than its group."""
        settings = self._settings
        if settings.port_range is not None:
            release(settings.bind_address, self._port)
            self._port = free_port(settings.bind_address, settings.port_range)

    def send(self, version: str, push_id: str, timeout_s: float) -> TransferReport:
        """Push the source's weights to all members, labelled `version`. Returns within `timeout_s`, and the time that
        the source takes to finish its pass.

        Raises:
            ValueError: the source yields something else than it announced.
        """
        client, engine, error = self._client, self._engine, ""
        if client is None:
            raise ServiceError("send_weights before open_transfer")
        client.begin(Deadline(timeout_s), push_id=push_id, version=version)
        self._source.start_pass()
        try:
            if engine is None:
                raise ServiceError("no transfer group is open")
            engine.send_weights()
        except ServiceError as problem:
            error = str(problem)
            self.close()
            client.settle()
        finally:
            self._source.finish_pass()
        if error:
            return TransferReport(client.outcomes, client.problems, error, first=client.first)
        return TransferReport(
            client.outcomes,
            client.problems,
            seconds=engine.seconds,
            load_seconds=engine.load_seconds,
            num_bytes=engine.num_bytes,
            gather_seconds=self._source.gather_seconds,
        )

    def close(self) -> None:
        """Leave the transfer group, if there is one."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.shutdown()


def trainer_init_info(settings: TransferSettings, world_size: int, port: int = 0) -> Any:
    """What vLLM's factory builds rank 0's engine from; the settings were checked (rollout_server/config.py).

    `port` is where the group meets; 0: the engine picks a free one.
    """
    if settings.backend == "gloo":
        return GlooTrainerInitInfo(
            settings.bind_address,
            world_size,
            min(settings.bucket_bytes, GLOO_BUCKET_BYTES),
            settings.staging_bytes,
            settings.verify,
            master_port=port,
            rank=0,
        )
    return NCCLTrainerInitInfo(
        settings.bind_address, port, world_size, packed_buffer_size_bytes=settings.bucket_bytes, rank=0
    )
