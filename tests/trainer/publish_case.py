"""One learner rank whose pushes fail in every way, under real ZeRO-3.

A program: `rank world port folder`. After each failed push the ranks compare what they hold and gather the model again:
a rank that is a collective behind would hang, or get another bucket's bytes. Rank 0 writes `found.json`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn

from rollout_server.rendezvous import store_on
from tests.ranks import leave
from trainer.lora import served_weights
from trainer.publish import TransferSettings, WeightSender, ZeroWeightSource
from wire.errors import ServiceError
from wire.membership import Member
from wire.process import free_port


class FailingEngine:
    """A transfer engine that gives up after some tensors, as one does whose receiver has died."""

    def __init__(self, source: ZeroWeightSource, num: int, error: Exception, how: str) -> None:
        self.source, self.num, self.error, self.how = source, num, error, how

    def send_weights(self) -> None:
        if self.num:
            stream: Iterator[tuple[str, Tensor]] = iter(self.source) if self.how == "copies" else self.source.live()
            for _ in range(self.num):
                next(stream)
        raise self.error

    def shutdown(self) -> None:
        pass


def partitioned_model() -> nn.Module:
    """Whole values that every rank can compute, in shards."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(5)))
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        "optimizer": {"type": "AdamW", "params": {"lr": 0.0, "torch_adam": True}},
    }
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
    return engine.module


def main() -> None:
    rank, world, port, folder = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    os.environ["LOCAL_RANK"] = "0"
    timeout = timedelta(seconds=60)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    dist.init_process_group(
        "gloo", store=store_on("127.0.0.1", port, rank, world, timeout), rank=rank, world_size=world, timeout=timeout
    )
    deepspeed.init_distributed("gloo", dist_init_required=False)
    torch.manual_seed(0)
    expected = {
        n: p.detach().clone() for n, p in nn.Sequential(*(nn.Linear(16, 16) for _ in range(5))).named_parameters()
    }
    model = partitioned_model()
    assert all(parameter.numel() == 0 for parameter in model.parameters())  # nothing here is whole by itself
    source = ZeroWeightSource(served_weights(model), torch.float32, 1100, is_sender=rank == 0)
    sender = WeightSender(TransferSettings("gloo", "127.0.0.1", 1100, 2**20), source, "token")
    member = Member(f"http://127.0.0.1:{free_port('127.0.0.1')}", 1, "boot")  # nobody listens there
    found: dict[str, Any] = {"errors": [], "outcomes": []}

    def push(engine: Any) -> None:
        if rank != 0:
            source.start_pass()
            source.finish_pass()
            return
        if engine is not None:
            sender._engine = engine
        try:
            report = sender.send("v0.1", "push", 5.0)
        except ValueError as error:
            found["errors"].append(str(error))
        else:
            found["errors"].append(report.error)

    if rank == 0:
        found["outcomes"] = list(sender.open([member], 5.0).outcomes.values())
    push(None)  # no group is open
    for num in (0, 1, 3, 6, 10):
        for how in ("copies", "live"):
            for error in (ServiceError("a member is gone"), ValueError("not as announced")):
                push(FailingEngine(source, num, error, how))
                total = torch.tensor([float(len(source._left))])
                dist.all_reduce(total)
                assert total == 0
                whole = dict(source)
                if rank == 0:
                    assert all(torch.equal(whole[name], value) for name, value in expected.items()), (num, how)
                assert all(parameter.numel() == 0 for parameter in model.parameters())  # shards again
    if rank == 0:
        (folder / "found.json").write_text(json.dumps(found))
    leave()


if __name__ == "__main__":
    main()
