"""vLLM's own NCCL engines under a guard.

NCCL does not time out. Where a member dies in mid-transfer the kernels of all others wait for its bytes for ever, and
with them whoever waits for their streams. `ncclCommAbort`, from another thread, is what ends them. So a watchdog stands
beside each transfer, on both sides: it aborts the communicator at the deadline, and at once when the sender has learned
that a member failed; the workers learn of that through the store at which the group met.

The transfer itself, its packing and its streams are vLLM's (`vllm/distributed/weight_transfer/nccl_engine.py`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

import torch
from vllm.distributed.weight_transfer.base import WeightSource
from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo
from vllm.distributed.weight_transfer.nccl_engine import (
    NCCLTrainerInitInfo,
    NCCLTrainerWeightTransferEngine,
    NCCLWeightTransferEngine,
    NCCLWeightTransferUpdateInfo,
)

from rollout_server.buckets import num_bytes
from rollout_server.meeting import GO, Meeting, join
from rollout_server.reload import forget_half_loaded, let_updates_start_over
from rollout_server.transfer import SyncClient
from rollout_server.waiting import Deadline, TransferBroken, in_background, wait_for

WATCH_S = 0.05


@dataclass(kw_only=True)
class GuardedNCCLInitInfo(NCCLWeightTransferInitInfo):
    """vLLM's message, with the seconds that a worker may take to join."""

    timeout_s: float = 0.0


@dataclass
class GuardedNCCLUpdateInfo(NCCLWeightTransferUpdateInfo):
    """vLLM's message, with the seconds that a worker may take to receive."""

    timeout_s: float = 0.0


class Guard:
    """Watches over one transfer, as a context manager.

    Args:
        communicator: vLLM's `PyNcclCommunicator`.
        deadline: of the transfer.
        is_lost: asked every 50 ms, in the guard's thread: whether the transfer cannot succeed any more.

    Raises:
        TransferBroken: on leaving the block, where the guard had to abort; the block's own error is its cause.
    """

    def __init__(self, communicator: Any, deadline: Deadline, is_lost: Callable[[], bool] = lambda: False) -> None:
        self._communicator, self._deadline, self._is_lost = communicator, deadline, is_lost
        self._over = threading.Event()
        self._lock = threading.Lock()
        self.reason = ""

    def __enter__(self) -> Self:
        threading.Thread(target=self._watch, daemon=True, name="nccl-guard").start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self.reason:
            raise TransferBroken(self.reason) from error
        if error is not None:
            self.abort("the transfer failed")  # the others' kernels would wait for ours
            if isinstance(error, RuntimeError) and str(error).startswith("NCCL error"):
                raise TransferBroken(str(error)) from error

    def abort(self, reason: str) -> None:
        """End the communicator, once, from any thread: its kernels return, with what bytes they have."""
        with self._lock:
            if self.reason or not self._communicator.available:
                return
            self.reason = reason
            # vLLM's calls on a disabled communicator do nothing, so the engine's loop runs out by itself.
            self._communicator.disabled = True
            self._communicator.available = False
            with torch.accelerator.device_index(self._communicator.device.index):
                self._communicator.nccl.ncclCommAbort(self._communicator.comm)

    def _watch(self) -> None:
        while not self._over.wait(min(WATCH_S, max(0.001, self._deadline.left()))):
            if self._is_lost():
                self.abort("a member of the transfer group was lost")
            elif self._deadline.left() <= 0:
                self.abort("the deadline of the transfer has passed")
            else:
                continue
            return


class GuardedNCCLWeightTransferEngine(NCCLWeightTransferEngine):
    """The replica's side, in the place of vLLM's `nccl`."""

    init_info_cls = GuardedNCCLInitInfo
    update_info_cls = GuardedNCCLUpdateInfo
    _store: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        let_updates_start_over()

    def init_transfer_engine(self, init_info: Any) -> None:
        """Join the transfer group of a `GuardedNCCLInitInfo`; blocks until all members are there, at most `timeout_s`.

        Raises:
            RuntimeError: not in time, or the sender gave up on a member.
        """
        self.shutdown()
        assert init_info.master_address is not None and init_info.master_port is not None
        deadline, parallel = Deadline(init_info.timeout_s), self.parallel_config
        rank = init_info.rank_offset + parallel.data_parallel_index * parallel.world_size + parallel.rank
        self.packed = init_info.packed
        self.packed_buffer_size_bytes = init_info.packed_buffer_size_bytes
        self.packed_num_buffers = init_info.packed_num_buffers
        store = self._store = join(init_info.master_address, init_info.master_port, rank, deadline)
        forming = in_background(lambda: communicator(store, rank, init_info.world_size))
        wait_for(forming, deadline, lambda: check_meeting(store))
        self.model_update_group = forming.result()

    def start_weight_update(self) -> None:
        """Begin vLLM's layer-wise reload; what a broken push left in it is dropped."""
        forget_half_loaded(self.model)
        super().start_weight_update()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive one push. On any error the group is left, so that all other members fail too.

        Raises:
            TransferBroken: a member was lost, or the push was not here within `timeout_s`.
        """
        info: Any = self.parse_update_info(update_info)
        store = self._store
        if self.model_update_group is None:
            raise RuntimeError("update_weights before init_weight_transfer_engine")
        try:
            with Guard(self.model_update_group, Deadline(info.timeout_s), lambda: is_lost(store)):
                self.receive_weights(info)
                torch.accelerator.synchronize()
        except BaseException:
            self.shutdown()
            raise

    def shutdown(self) -> None:
        """Leave the group."""
        super().shutdown()
        self._store = None


class GuardedNCCLTrainerWeightTransferEngine(NCCLTrainerWeightTransferEngine):
    """The sender's side, in the place of vLLM's `nccl`. Its calls end by the client's deadline."""

    client: SyncClient
    seconds = load_seconds = 0.0
    num_bytes = 0
    _meeting: Meeting | None = None

    @classmethod
    def trainer_init(cls, init_info: NCCLTrainerInitInfo, *, client: Any, source: WeightSource | None = None) -> Self:
        """Open the group with every worker of the fleet.

        Raises:
            ServiceError: a member failed, or the client's deadline has passed.
        """
        if source is None:
            raise ValueError("the nccl backend sends whole models and needs a WeightSource")
        packing: dict[str, Any] = {
            "packed": init_info.packed,
            "packed_buffer_size_bytes": init_info.packed_buffer_size_bytes,
            "packed_num_buffers": init_info.packed_num_buffers,
        }
        engine = cls(client=client, source=source, **packing)
        engine.num_bytes = sum(map(num_bytes, source.metadata()))
        meeting = engine._meeting = Meeting(init_info.master_address, client.deadline, init_info.master_port)
        client.on_failure = meeting.close
        payload = GuardedNCCLInitInfo(
            master_address=init_info.master_address,
            master_port=meeting.port,
            rank_offset=1,
            world_size=init_info.world_size,
            **packing,
        )
        body = {key: value for key, value in asdict(payload).items() if value is not None}
        joined = in_background(lambda: client.init_weight_transfer_engine(body))

        def form() -> Any:
            store = meeting.client(client.deadline)
            forming = in_background(lambda: communicator(store, 0, init_info.world_size))
            wait_for(forming, client.deadline, meeting.check)
            return forming.result()

        try:
            engine.model_update_group = meeting.gather(init_info.world_size, client.deadline, joined, form)
        except BaseException:
            engine.shutdown()
            raise
        return engine

    def send_weights(self) -> None:
        """Push the source's weights to every worker and finish the update.

        Raises:
            ServiceError: a member failed, or the client's deadline has passed.
            ValueError: the source yields something else than it announced.
        """
        if self.model_update_group is None:
            raise TransferBroken("no transfer group is open")
        guard = Guard(self.model_update_group, self.client.deadline)

        def member_failed() -> None:
            self._tell_workers()
            guard.abort("a member of the transfer group failed")

        self.client.on_failure = member_failed
        try:
            with guard:
                super().send_weights()
        except BaseException:
            self._tell_workers()
            self.shutdown()
            raise

    def _broadcast(self, source: WeightSource, meta: Any) -> None:
        started = time.perf_counter()
        super()._broadcast(source, meta)
        self.seconds = time.perf_counter() - started

    def _tell_workers(self) -> None:
        if self._meeting is not None:
            self._meeting.close()  # a store that is gone says it too

    def shutdown(self) -> None:
        """Leave the group."""
        super().shutdown()
        meeting, self._meeting = self._meeting, None
        if meeting is not None:
            meeting.close()


def is_lost(store: Any) -> bool:
    """Whether the sender has ended the meeting, or is gone itself."""
    try:
        store.check([GO])
    except RuntimeError:
        return True
    return False


def check_meeting(store: Any) -> None:
    """Raises TransferBroken where the sender has ended the meeting."""
    if is_lost(store):
        raise TransferBroken("the meeting of the transfer group was ended: a member did not join")


def communicator(store: Any, rank: int, world_size: int) -> Any:
    """vLLM's communicator, met over a store that exists. Blocks until all ranks are in it."""
    from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
    from vllm.distributed.utils import StatelessProcessGroup
    from vllm.utils.nccl import unpinned_nccl_env

    with unpinned_nccl_env():
        return PyNcclCommunicator(
            StatelessProcessGroup(rank=rank, world_size=world_size, store=store),
            device=torch.accelerator.current_device_index(),
        )
