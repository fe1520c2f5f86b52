"""A push over real Gloo: the trainer's engine and the workers' in one process, each in a thread of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

from rollout_server.transfer import (
    GlooInitInfo,
    GlooTrainerInitInfo,
    GlooTrainerWeightTransferEngine,
    GlooUpdateInfo,
    GlooWeightTransferEngine,
    cut_into_buckets,
    num_bytes,
    pack,
    unpack,
)
from wire.errors import ServiceError

SHAPES = st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), min_size=1, max_size=8)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])


@st.composite
def metadata(draw: st.DrawFn) -> list[ParamMeta]:
    return [ParamMeta(f"p{index}", draw(DTYPES), shape) for index, shape in enumerate(draw(SHAPES))]


def tensors_for(metas: Sequence[ParamMeta], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(meta.shape, generator=generator).to(meta.dtype) for meta in metas]


@given(metadata(), st.integers(1, 400))
def test_buckets_hold_every_parameter_once_in_order_and_close_when_they_are_full(
    metas: list[ParamMeta], size: int
) -> None:
    buckets = list(cut_into_buckets(metas, size))
    assert [meta for bucket in buckets for meta in bucket] == metas
    for bucket in buckets:
        assert sum(map(num_bytes, bucket[:-1])) < size
    for bucket in buckets[:-1]:
        assert sum(map(num_bytes, bucket)) >= size


@given(metadata())
def test_what_is_packed_is_unpacked_bit_by_bit(metas: list[ParamMeta]) -> None:
    tensors = tensors_for(metas)
    buffer = pack(tensors)
    assert (buffer.dtype, buffer.numel()) == (torch.uint8, sum(map(num_bytes, metas)))
    for meta, tensor, (name, arrived) in zip(metas, tensors, unpack(buffer, metas), strict=True):
        assert (name, arrived.dtype, tuple(arrived.shape)) == (meta.name, meta.dtype, meta.shape)
        assert torch.equal(arrived, tensor)


def test_a_tensor_behind_an_odd_number_of_bytes_owns_aligned_memory() -> None:
    metas = [ParamMeta("half", torch.bfloat16, (1,)), ParamMeta("whole", torch.float32, (2,))]
    buffer = pack([torch.ones(1, dtype=torch.bfloat16), torch.tensor([1.5, -2.0])])
    (_, half), (_, whole) = unpack(buffer, metas)
    buffer.zero_()
    assert whole.tolist() == [1.5, -2.0] and half.tolist() == [1.0]
    assert whole.data_ptr() % 4 == 0


def test_a_transposed_tensor_is_packed_in_its_own_order() -> None:
    tensor = torch.arange(6.0).view(2, 3).T
    ((_, arrived),) = unpack(pack([tensor]), [ParamMeta("t", torch.float32, (3, 2))])
    assert torch.equal(arrived, tensor)


class Source(WeightSource):
    """`yields` stands in for what iteration gives, where it differs from what is announced."""

    def __init__(self, metas: Sequence[ParamMeta], tensors: Sequence[Tensor]) -> None:
        self.metas, self.tensors = list(metas), list(tensors)
        self.num_read = 0

    def metadata(self) -> list[ParamMeta]:
        return self.metas

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for meta, tensor in zip(self.metas, self.tensors, strict=False):
            self.num_read += 1
            yield meta.name, tensor


class Model:
    """Remembers what was loaded."""

    def __init__(self) -> None:
        self.loaded: list[tuple[str, Tensor]] = []
        self.num_calls = 0

    def load_weights(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        self.num_calls += 1
        self.loaded += list(weights)


class Workers:
    """The control plane of a fleet: one replica of `world_size` workers, or many of one, all in this process."""

    def __init__(self, num: int) -> None:
        self.calls: list[str] = []
        self.models = [Model() for _ in range(num)]
        self.engines = [self.engine(model) for model in self.models]
        self.absent = False
        self.threads = ThreadPoolExecutor(max_workers=num)

    @staticmethod
    def engine(model: Model) -> GlooWeightTransferEngine:
        parallel = SimpleNamespace(data_parallel_index=0, world_size=1, rank=0)
        config: Any = SimpleNamespace(parallel_config=parallel, model_config=None)
        return GlooWeightTransferEngine(None, config, torch.device("cpu"), model)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.calls.append("init")
        if self.absent:
            return
        infos = [GlooInitInfo(**{**init_info, "rank_offset": 1 + index}) for index in range(len(self.engines))]
        list(
            self.threads.map(lambda pair: pair[0].init_transfer_engine(pair[1]), zip(self.engines, infos, strict=True))
        )

    def start_weight_update(self) -> None:
        self.calls.append("start")

    def update_weights(self, update_info: Any) -> None:
        self.calls.append("update")
        if not self.absent:
            list(self.threads.map(lambda engine: engine.update_weights(update_info), self.engines))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.calls.append("finish")

    def close(self) -> None:
        for engine in self.engines:
            engine.shutdown()
        self.threads.shutdown()


@pytest.fixture(autouse=True)
def on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")


@pytest.fixture
def workers(request: pytest.FixtureRequest) -> Iterator[Workers]:
    made = Workers(getattr(request, "param", 1))
    yield made
    made.close()


METAS = [
    ParamMeta("embed", torch.float32, (7, 3)),
    ParamMeta("norm", torch.bfloat16, (5,)),
    ParamMeta("empty", torch.float32, (0, 4)),
    ParamMeta("scalar", torch.float32, ()),
    ParamMeta("head", torch.bfloat16, (9, 11)),
]


def trainer(
    workers: Workers, source: WeightSource, *, bucket_bytes: int = 64, timeout_s: float = 20.0, rank: int = 0
) -> GlooTrainerWeightTransferEngine:
    info = GlooTrainerInitInfo("127.0.0.1", 1 + len(workers.engines), bucket_bytes, timeout_s, rank=rank)
    return GlooTrainerWeightTransferEngine.trainer_init(info, client=workers, source=source)


@pytest.mark.parametrize("workers", [1, 2], indirect=True)
@pytest.mark.parametrize("bucket_bytes", [1, 64, 2**20])
def test_a_push_arrives_whole_at_every_worker_and_so_does_the_next(workers: Workers, bucket_bytes: int) -> None:
    source = Source(METAS, tensors_for(METAS))
    engine = trainer(workers, source, bucket_bytes=bucket_bytes)
    engine.send_weights()
    source.tensors = tensors_for(METAS, seed=1)
    engine.send_weights()
    engine.shutdown()
    assert workers.calls == ["init", *["start", "update", "finish"] * 2]
    for model in workers.models:
        assert [name for name, _ in model.loaded] == [meta.name for meta in METAS] * 2
        expected = tensors_for(METAS) + tensors_for(METAS, seed=1)
        for (_, arrived), sent in zip(model.loaded, expected, strict=True):
            assert arrived.dtype == sent.dtype and torch.equal(arrived, sent)
        assert model.num_calls == 2 * len(list(cut_into_buckets(METAS, bucket_bytes)))


def test_a_rank_that_does_not_send_reads_its_source_to_the_end_and_calls_nobody(workers: Workers) -> None:
    source = Source(METAS, tensors_for(METAS))
    trainer(workers, source, rank=1).send_weights()
    assert source.num_read == len(METAS) and workers.calls == []


@pytest.mark.parametrize(
    ("index", "tensor"), [(0, torch.zeros(3, 7)), (1, torch.zeros(5)), (4, torch.zeros(99).bfloat16())]
)
def test_a_source_that_differs_from_its_description_ends_the_push_on_both_sides(
    workers: Workers, index: int, tensor: Tensor
) -> None:
    source = Source(METAS, tensors_for(METAS))
    source.tensors[index] = tensor
    engine = trainer(workers, source)
    started = time.monotonic()
    with pytest.raises(ValueError, match=rf"yields {METAS[index].name} .* where it announced"):
        engine.send_weights()
    assert "finish" not in workers.calls
    workers.threads.shutdown(wait=True)  # the worker's receive has failed too, long before its deadline
    assert time.monotonic() - started < 10


def test_a_worker_that_never_comes_fails_the_opening_within_the_timeout(workers: Workers) -> None:
    workers.absent = True
    started = time.monotonic()
    with pytest.raises(ServiceError, match="transfer group of 2 ranks was not whole within 1 s"):
        trainer(workers, Source(METAS, tensors_for(METAS)), timeout_s=1.0)
    assert time.monotonic() - started < 6


def test_a_replica_that_refuses_to_join_is_the_error_that_is_told(workers: Workers) -> None:
    def refuse(init_info: dict[str, Any]) -> None:
        raise ServiceError("http://replica-0/init_weight_transfer_engine answered HTTP 500")

    workers.init_weight_transfer_engine = refuse
    with pytest.raises(ServiceError, match="replica-0/init_weight_transfer_engine answered HTTP 500"):
        trainer(workers, Source(METAS, tensors_for(METAS)), timeout_s=1.0)


def test_a_worker_that_does_not_receive_fails_the_push_within_the_timeout(workers: Workers) -> None:
    large = [ParamMeta(f"large{index}", torch.float32, (2**23,)) for index in range(2)]  # more than sockets buffer
    engine = trainer(workers, Source(large, [torch.zeros(2**23)] * 2), bucket_bytes=1, timeout_s=1.0)
    workers.absent = True
    started = time.monotonic()
    with pytest.raises((RuntimeError, TimeoutError)):
        engine.send_weights()
    assert time.monotonic() - started < 8 and "finish" not in workers.calls


def test_an_update_before_the_group_is_open_is_refused() -> None:
    engine = Workers.engine(Model())
    with pytest.raises(RuntimeError, match="before init_weight_transfer_engine"):
        engine.receive_weights(GlooUpdateInfo([], [], []))
