"""The push over NCCL beside a bare NCCL broadcast of as many bytes: two processes on one GPU.

    python -m benchmarks.push_gpu [--megabytes 2000] [--rounds 10]

Needs a GPU. The sender is the learner's own, `WeightSender` over a `ZeroWeightSource` of a policy that DeepSpeed has
partitioned (ZeRO-3, one rank); the receiver has vLLM's NCCL engine, under our guard as in a replica, and a model that
only copies (benchmarks/push_receiver.py). NCCL takes two processes on one GPU for a duplicate unless each has a host id
of its own; they then talk over sockets, so the figures say what packing and gathering cost, not what NVLink gives.
Rounds alternate, figures are medians, both from the sender's first call to the last byte.

The last line is JSON: {"seconds", "bare_seconds", "gb_per_s", "ratio"}; `ratio` is our GB/s over the bare broadcast's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import requests
import torch
import torch.distributed as dist

from benchmarks.push_model import policy_of, write_policy
from rollout_server.rendezvous import store_on
from trainer.lora import served_weights
from trainer.publish import TransferSettings, WeightSender, ZeroWeightSource
from wire.membership import Member
from wire.process import free_port

ADDRESS = "127.0.0.1"
TIMEOUT_S = 120.0
BUCKET_BYTES = 2**28


def partitioned(folder: Path) -> Any:
    """The policy in `folder` under ZeRO-3, on this one rank."""
    import deepspeed

    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    torch.cuda.set_device(0)
    store = store_on(ADDRESS, free_port(ADDRESS), 0, 1, timedelta(seconds=TIMEOUT_S))
    dist.init_process_group("nccl", store=store, rank=0, world_size=1)
    deepspeed.init_distributed("nccl", dist_init_required=False)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    }
    engine, *_ = deepspeed.initialize(model=policy_of(folder), config=config)
    return engine.module


@contextmanager
def receiver() -> Generator[str, None, None]:
    """A receiving process; its URL."""
    port = free_port(ADDRESS)
    command = [sys.executable, "-m", "benchmarks.push_receiver", str(port)]
    environment = os.environ | {"NCCL_HOSTID": "receiver"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            if not any(line == "ready\n" for line in process.stdout):
                raise SystemExit("the receiver ended before it was ready")
            yield f"http://{ADDRESS}:{port}"
        finally:
            process.kill()


def bare(url: str, communicator: Any, flat: torch.Tensor) -> float:
    """Seconds of one flat broadcast."""
    with ThreadPoolExecutor(1) as executor:
        body = {"num_bytes": flat.numel()}
        started = time.perf_counter()
        received = executor.submit(requests.post, f"{url}/bare_broadcast", json=body, timeout=TIMEOUT_S)
        communicator.broadcast(flat, src=0)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        received.result().raise_for_status()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=2000, help="of the model, 10^6 bytes; at least so many")
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.push_gpu needs a GPU, and this host shows none; benchmarks.push measures Gloo")
    os.environ |= {"NCCL_HOSTID": "sender", "NCCL_SOCKET_IFNAME": "lo", "NCCL_P2P_DISABLE": "1"}
    with tempfile.TemporaryDirectory() as name, receiver() as url:
        folder = Path(name) / "policy"
        write_policy(folder, args.megabytes * 10**6)
        source = ZeroWeightSource(served_weights(partitioned(folder)), torch.bfloat16, BUCKET_BYTES, is_sender=True)
        sender = WeightSender(TransferSettings("nccl", ADDRESS, BUCKET_BYTES, 0), source, "token")
        report = sender.open([Member(url, 1, "")], TIMEOUT_S)
        if not report.is_whole:
            raise SystemExit(f"no transfer group: {report}")
        flat = torch.empty(sender._engine.num_bytes, dtype=torch.uint8, device="cuda")
        ours, theirs = [], []
        for index in range(args.rounds + 1):  # the first warms up
            report = sender.send(f"v0.{index}", f"push-{index}", TIMEOUT_S)
            if not report.is_whole:
                raise SystemExit(f"a push failed: {report}")
            ours.append(report.seconds)
            theirs.append(bare(url, sender._engine.model_update_group, flat))
            print(f"{index}  push {ours[-1]:.4f} s  bare {theirs[-1]:.4f} s", flush=True)
        sender.close()
    seconds, bare_seconds = median(ours[1:]), median(theirs[1:])
    figures = {
        "seconds": round(seconds, 4),
        "bare_seconds": round(bare_seconds, 4),
        "gb_per_s": round(report.num_bytes / 1e9 / seconds, 3),
        "ratio": round(bare_seconds / seconds, 3),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
