"""The guard over vLLM's NCCL engines, with a communicator that hangs until it is aborted, as NCCL's kernels do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine, NCCLWeightTransferEngine

from rollout_server.nccl_guard import (
    Guard,
    GuardedNCCLTrainerWeightTransferEngine,
    GuardedNCCLWeightTransferEngine,
)
from rollout_server.transfer import register_trainer_engines, register_worker_engines
from rollout_server.waiting import Deadline, TransferBroken
from wire.errors import ServiceError


class HangingCommunicator:
    """Has what the guard uses of vLLM's `PyNcclCommunicator`."""

    def __init__(self) -> None:
        self.available, self.disabled = True, False
        self.device = SimpleNamespace(index=0)
        self.comm, self.aborted = object(), list[Any]()
        self.released = threading.Event()
        self.nccl = self

    def ncclCommAbort(self, comm: Any) -> None:
        self.aborted.append(comm)
        self.released.set()

    def broadcast(self, *_: Any, **__: Any) -> None:
        """Waits for a peer that never comes."""
        if not self.disabled:
            assert self.released.wait(20), "nobody aborted"

    def destroy(self) -> None:
        self.released.set()


@pytest.fixture(autouse=True)
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import nullcontext

    monkeypatch.setattr(torch.accelerator, "device_index", lambda _: nullcontext())
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: None)


@pytest.fixture
def communicator() -> HangingCommunicator:
    return HangingCommunicator()


def within(seconds: float, act: Callable[[], None]) -> None:
    started = time.monotonic()
    act()
    assert time.monotonic() - started < seconds


def test_the_deadline_aborts_once_and_is_the_error(communicator: HangingCommunicator) -> None:
    def act() -> None:
        with pytest.raises(TransferBroken, match="deadline"), Guard(communicator, Deadline(0.2)):
            communicator.broadcast()

    within(5, act)
    assert communicator.aborted == [communicator.comm] and communicator.disabled and not communicator.available


def test_a_lost_member_aborts_long_before_the_deadline(communicator: HangingCommunicator) -> None:
    def act() -> None:
        with pytest.raises(TransferBroken, match="lost"), Guard(communicator, Deadline(60), lambda: True):
            communicator.broadcast()

    within(5, act)


def test_an_error_of_the_block_aborts_for_the_others_sake_and_stays_what_it_is(
    communicator: HangingCommunicator,
) -> None:
    with pytest.raises(ValueError, match="announced"), Guard(communicator, Deadline(60)):
        raise ValueError("not what was announced")
    assert communicator.aborted == [communicator.comm]


def test_what_nccl_itself_notices_is_the_members_fault(communicator: HangingCommunicator) -> None:
    with pytest.raises(TransferBroken, match="remote process exited"), Guard(communicator, Deadline(60)):
        raise RuntimeError("NCCL error: remote process exited or there was a network error")


def test_a_transfer_that_ends_well_aborts_nothing(communicator: HangingCommunicator) -> None:
    with Guard(communicator, Deadline(0.05)) as guard:
        pass
    time.sleep(0.2)  # beyond the deadline: the watch is over
    assert communicator.aborted == [] and guard.reason == ""


class Source(WeightSource):
    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta("w", torch.float32, (2,))]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield "w", torch.zeros(2)


class Client:
    """A control plane one of whose members fails an update at once."""

    def __init__(self, timeout_s: float, *, fails: bool) -> None:
        self.deadline, self.fails = Deadline(timeout_s), fails
        self.on_failure: Callable[[], None] = lambda: None

    def start_weight_update(self) -> None:
        pass

    def update_weights(self, update_info: Any) -> None:
        if self.fails:
            self.on_failure()
            raise ServiceError("http://a/update_weights answered HTTP 500")
        threading.Event().wait(self.deadline.left())
        raise ServiceError("http://a/update_weights: no answer within the deadline")


@pytest.mark.parametrize(("timeout_s", "fails"), [(60.0, True), (0.3, False)])
def test_the_sender_is_free_when_a_member_fails_and_at_the_deadline(
    communicator: HangingCommunicator, monkeypatch: pytest.MonkeyPatch, timeout_s: float, fails: bool
) -> None:
    client: Any = Client(timeout_s, fails=fails)
    engine = GuardedNCCLTrainerWeightTransferEngine(client=client, source=Source())
    engine.model_update_group = communicator

    def broadcast(self: Any, source: Any, meta: Any) -> None:  # the packed one needs a GPU's streams
        communicator.broadcast()

    monkeypatch.setattr(NCCLTrainerWeightTransferEngine, "_broadcast", broadcast)

    def act() -> None:
        with pytest.raises(ServiceError):
            engine.send_weights()

    within(5, act)
    assert communicator.aborted == [communicator.comm]
    with pytest.raises(TransferBroken, match="no transfer group is open"):
        engine.send_weights()


class GoneStore:
    """The meeting's store after the sender closed it."""

    def check(self, keys: list[str]) -> bool:
        raise RuntimeError("connection was likely closed")


def test_a_worker_is_free_when_the_sender_has_ended_the_meeting(
    communicator: HangingCommunicator, monkeypatch: pytest.MonkeyPatch
) -> None:
    parallel = SimpleNamespace(data_parallel_index=0, world_size=1, rank=0)
    config: Any = SimpleNamespace(parallel_config=parallel, model_config=None)
    engine = GuardedNCCLWeightTransferEngine(None, config, torch.device("cpu"), torch.nn.Module())
    engine.model_update_group, engine._store = communicator, GoneStore()
    monkeypatch.setattr(NCCLWeightTransferEngine, "receive_weights", lambda self, info: communicator.broadcast())

    def act() -> None:
        with pytest.raises(TransferBroken, match="lost"):
            engine.update_weights({"names": [], "dtype_names": [], "shapes": [], "timeout_s": 60.0})

    within(5, act)
    assert engine.model_update_group is None


def test_the_guarded_engines_are_what_vllm_finds_under_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    for factory in (WeightTransferEngineFactory, WeightTransferTrainerFactory):
        monkeypatch.setattr(factory, "_registry", dict(factory._registry))
    for _ in range(2):  # vLLM may load a plug-in more than once
        register_worker_engines()
        register_trainer_engines()
    assert WeightTransferEngineFactory._registry["nccl"]() is GuardedNCCLWeightTransferEngine
    assert WeightTransferTrainerFactory._registry["nccl"]() is GuardedNCCLTrainerWeightTransferEngine
