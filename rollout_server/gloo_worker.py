"""The replica's side of a push over Gloo: everything is received first, then loaded."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import WeightTransferEngine

from rollout_server.buckets import Bucket, cut_into_buckets, cut_into_pieces, verify_checksum
from rollout_server.gloo_group import GlooGroup
from rollout_server.meeting import join
from rollout_server.reload import Reload, let_updates_start_over
from rollout_server.transfer import GlooInitInfo, GlooUpdateInfo
from rollout_server.waiting import Deadline, TransferBroken


class GlooWeightTransferEngine(WeightTransferEngine[GlooInitInfo, GlooUpdateInfo]):
    """Loaded by a stock server started with `--weight-transfer-config '{"backend": "gloo"}'`.

    A model that fits into the staging area is loaded only when all of it has arrived, at every worker of the fleet: a
    push that fails before leaves everybody's weights as they were. A larger one is loaded piece by piece.
    """

    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._group: GlooGroup | None = None
        self._store: Any = None
        self._info: GlooInitInfo | None = None
        self._rank = 0
        self._staging: Tensor | None = None
        self._reload = Reload()
        let_updates_start_over()

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        """Join the transfer group; blocks until all members are there, at most `timeout_s`.

        Raises:
            RuntimeError: not in time, or the sender gave up on a member.
        """
        self.shutdown()
        deadline, parallel = Deadline(init_info.timeout_s), self.parallel_config
        self._info = init_info
        self._rank = init_info.rank_offset + parallel.data_parallel_index * parallel.world_size + parallel.rank
        if init_info.stream_bytes <= init_info.staging_bytes:
            # Written once, so that the first push does not pay for the pages.
            self._staging = torch.zeros(init_info.stream_bytes, dtype=torch.uint8)
        self._store = join(init_info.master_address, init_info.master_port, self._rank, deadline)
        self._group = GlooGroup(self._store, self._rank, init_info.world_size, deadline)

    def start_weight_update(self) -> None:
        """The model is taken apart only when its new weights are here; what an update left unfinished is forgotten."""
        self._reload.abandon()

    def finish_weight_update(self) -> None:
        """End the reload."""
        self._reload.finish(self.model, self.model_config)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive one push. The base class also synchronises an accelerator, which a CPU does not have."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: GlooUpdateInfo) -> None:
        """Receive and load one push. On any error the group is closed, so that all other members fail too.

        Raises:
            RuntimeError: no group is open, or a bucket arrived damaged.
            TransferBroken: a member was lost, or the push was not here within `timeout_s`.
        """
        if self._group is None or self._info is None:
            raise RuntimeError("update_weights before init_weight_transfer_engine")
        deadline = Deadline(update_info.timeout_s)
        buckets = cut_into_buckets(update_info.metadata(), self._info.bucket_bytes)
        pieces = cut_into_pieces(buckets, self._info.staging_bytes)
        load_seconds = 0.0
        try:
            self._store.set(f"ready/{update_info.push}/{self._rank}", "1")
            for piece in pieces:
                is_last = piece is pieces[-1]
                areas = self._receive(piece, deadline, self._staging if len(pieces) == 1 else None)
                if is_last:
                    self._store.set(f"arrived/{update_info.push}/{self._rank}", "1")
                if len(pieces) == 1:
                    self._wait_for_all(update_info.push, deadline)
                started = time.perf_counter()
                self._load(piece, areas)
                load_seconds += time.perf_counter() - started
            self._store.set(f"loaded/{update_info.push}/{self._rank}", f"{load_seconds:.6f}")
        except BaseException:
            self._reload.abandon()
            self.shutdown()
            raise

    def _receive(self, piece: list[Bucket], deadline: Deadline, staging: Tensor | None) -> list[Tensor]:
        """The bytes of each bucket. A staging area is reused only by a push that is one piece: of a piece among several
        the model's loader keeps views, until the layer that they belong to is whole."""
        assert self._group is not None and self._info is not None
        if staging is None:
            staging = torch.empty(sum(bucket.num_bytes for bucket in piece), dtype=torch.uint8)
        areas = list(staging[: sum(b.num_bytes for b in piece)].split([bucket.num_bytes for bucket in piece]))
        works = [self._group.broadcast(area, deadline) for area in areas]
        for bucket, area, work in zip(piece, areas, works, strict=True):
            self._group.wait(work, deadline)
            if self._info.verify:
                verify_checksum(bucket, area)
        return areas

    def _wait_for_all(self, push: int, deadline: Deadline) -> None:
        """Until everybody has everything. A sender that gives up ends the store, and with it this wait."""
        try:
            self._store.wait([f"load/{push}"], deadline.timedelta())
        except RuntimeError as error:
            raise TransferBroken("all has arrived here, but not at every member of the fleet") from error

    def _load(self, piece: list[Bucket], areas: list[Tensor]) -> None:
        self._reload.begin(self.model)
        load_weights: Any = self.model.load_weights
        for bucket, area in zip(piece, areas, strict=True):
            load_weights(bucket.named(area))

    def shutdown(self) -> None:
        """Leave the group."""
        group, self._group, self._store = self._group, None, None
        self._staging = None  # Gloo may still write into it
        if group is not None:
            group.close()
