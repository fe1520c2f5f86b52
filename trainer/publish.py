"""The learner's side of a weight push: a source that gathers ZeRO shards, and a client that speaks to a whole fleet.

Both fill vLLM's own seams (`WeightSource`, `VLLMWeightSyncClient`), so every transfer engine that takes a full-model
source works with them; `nccl` is vLLM's, `gloo` ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import requests
import torch
from vllm.distributed.weight_transfer.base import ParamMeta, TrainerWeightTransferEngine, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from rollout_server.transfer import GlooTrainerInitInfo, register_trainer_engine
from trainer.lora import ServedWeight
from wire.errors import ConfigError, ServiceError
from wire.process import free_port
from wire.token import auth_headers

Member = tuple[str, int]  # URL of a replica, number of its workers


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

    def metadata(self) -> list[ParamMeta]:
        """Names, wire type and full shapes; a ZeRO-3 shard knows its full shape as `ds_shape`, its own is empty."""
        return [
            ParamMeta(weight.name, self._dtype, tuple(getattr(weight.base, "ds_shape", weight.base.shape)))
            for weight in self._weights
        ]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for bucket in self._buckets():
            yield from self._gather(bucket)

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

    @torch.no_grad()
    def _gather(self, bucket: list[ServedWeight]) -> list[tuple[str, torch.Tensor]]:
        """Full tensors of one bucket.

        The transfer engines iterate on streams of their own, and a gather issued there deadlocks above two ranks: it
        would race with collectives of the default stream. So it runs there, and is finished before it is handed over.
        """
        import deepspeed

        partitioned = [part for weight in bucket for part in weight.parts if hasattr(part, "ds_id")]
        with _default_stream(), deepspeed.zero.GatheredParameters(partitioned, enabled=bool(partitioned)):
            if not self._is_sender:
                return [(weight.name, torch.empty(0)) for weight in bucket]
            # A copy: outside this block the parameter is a shard again, and the next step changes it in place.
            return [(weight.name, weight.tensor(self._dtype)) for weight in bucket]


@contextmanager
def _default_stream() -> Iterator[None]:
    if not torch.cuda.is_available():
        yield
        return
    stream = torch.cuda.default_stream()
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()


class FleetSyncClient:
    """vLLM's four-call control plane for one server, fanned out to all members of a fleet.

    Each member gets a `rank_offset` of its own, so one broadcast feeds them all. A call returns when every member has
    answered 200.

    Args:
        members: replicas and their numbers of workers, in rank order; the learner's rank 0 comes before them.
        token: the run's access token.
        timeout_s: deadline of every call.

    Raises (from every call):
        ServiceError: a member failed or missed the deadline; the message names it.
    """

    def __init__(self, members: Sequence[Member], token: str, timeout_s: float) -> None:
        self._members, self._headers, self._timeout_s = list(members), auth_headers(token), timeout_s
        self.version = ""

    @property
    def world_size(self) -> int:
        """Ranks of the transfer group: the sender and every worker."""
        return 1 + sum(size for _, size in self._members)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Each member joins the group at its own offset."""
        offset, bodies = init_info["rank_offset"], []
        for _, size in self._members:
            bodies.append({"init_info": {**init_info, "rank_offset": offset}})
            offset += size
        self._post("init_weight_transfer_engine", lambda index: bodies[index])

    def start_weight_update(self) -> None:
        """Every member gets ready for new weights."""
        self._post("start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        """Every member receives; blocks until the broadcast is over."""
        self._post("update_weights", lambda _: {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Every member finishes, and stamps its tokens with the version from now on."""
        self._post("finish_weight_update", lambda _: {"weight_version": weight_version or self.version})

    def _post(self, route: str, body: Callable[[int], dict[str, Any]] = lambda _: {}) -> None:
        def call(index: int) -> str | None:
            url = f"{self._members[index][0]}/{route}"
            try:
                reply = requests.post(url, json=body(index), headers=self._headers, timeout=self._timeout_s)
            except requests.RequestException as error:
                return f"{url}: {type(error).__name__}: {error}"
            return None if reply.status_code == 200 else f"{url} answered HTTP {reply.status_code}: {reply.text[:300]}"

        with ThreadPoolExecutor(max_workers=len(self._members)) as executor:
            problems = [problem for problem in executor.map(call, range(len(self._members))) if problem]
        if problems:
            raise ServiceError("; ".join(problems))


def open_transfer(
    backend: str,
    *,
    rank: int,
    client: FleetSyncClient,
    source: WeightSource,
    bind_address: str,
    bucket_bytes: int,
    timeout_s: float,
) -> TrainerWeightTransferEngine[Any]:
    """Form the transfer group and return vLLM's trainer engine for it. Called on every learner rank.

    Raises:
        ConfigError: a backend that this source cannot feed.
    """
    if backend == "gloo":
        register_trainer_engine()
        info: Any = GlooTrainerInitInfo(bind_address, client.world_size, bucket_bytes, timeout_s, rank=rank)
    elif backend == "nccl":
        port = free_port(bind_address) if rank == 0 else 0  # the others open no endpoint
        info = NCCLTrainerInitInfo(
            bind_address, port, client.world_size, packed_buffer_size_bytes=bucket_bytes, rank=rank
        )
    else:
        raise ConfigError(f"weight_transfer_backend {backend!r} is not among nccl and gloo")
    return WeightTransferTrainerFactory.trainer_init(info, client=client, source=source)
