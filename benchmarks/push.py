"""How fast does a push reach one, two and four replicas, beside a bare broadcast of as many bytes to the same ones?

    python -m benchmarks.push [--receivers 1 2 4] [--megabytes 256] [--rounds 7] [--bucket_mib 32] [--verify]

The replicas are real vLLM servers as `rollout_server` starts them, with a random Qwen3 in bf16; the sender is the
learner's own: `WeightSender` over a `ZeroWeightSource`. Rounds alternate: a push (pause, transfer, load, resume), then
one flat broadcast of the same number of bytes by Gloo itself, over the very connections of the transfer group, into
memory that the worker keeps (benchmarks/push_worker.py). Figures are medians.

`seconds` go from the first byte, when all workers are ready, to the last, when all workers say that they have it all;
the same on both sides. `load_seconds` is the longest that a worker took to put it into its model. The pause goes from
the request to pause to the last server's answer to resume; `pause_over_transfer_s` is what of it is neither.

The last line is JSON: {"receivers": {"1": {"seconds", "gb_per_s", "ratio", "load_seconds", "pause_over_transfer_s"}}};
`ratio` is our GB/s over the bare broadcast's.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import requests
import torch

from benchmarks.push_model import policy_of, write_policy
from benchmarks.push_worker import flat_broadcast
from benchmarks.servers import ADDRESS, running
from rollout_server.config import RolloutSettings
from rollout_server.replica import replica_process
from rollout_server.waiting import Deadline
from trainer.lora import served_weights
from trainer.publish import TransferSettings, WeightSender, ZeroWeightSource
from wire.membership import Member
from wire.token import auth_headers, read_or_create_token

TIMEOUT_S = 120.0
STARTUP_S = 600.0
EXTENSION = "benchmarks.push_worker.BareBroadcast"


def replica_settings(folder: Path, num: int) -> RolloutSettings:
    """Small servers: nothing is generated in any number."""
    return RolloutSettings(
        model_name_or_path=str(folder / "policy"),
        replicas=num,
        device="cpu",
        rollout_dtype="bfloat16",
        bind_address=ADDRESS,
        token_file=str(folder / "token"),
        log_dir=str(folder),
        max_prompt_length=192,
        response_length=64,
        rollout_max_num_seqs=4,
        rollout_extra_args=f"--worker-extension-cls {EXTENSION}",
    )


class Bench:
    """One sender and the replicas at `urls`."""

    def __init__(self, urls: Sequence[str], source: ZeroWeightSource, settings: TransferSettings, token: str) -> None:
        self._members = [Member(url, 1, _boot_id(url)) for url in urls]
        self._headers = auth_headers(token)
        self._sender = WeightSender(settings, source, token)
        self._num_pushes = 0
        self._flat = torch.zeros(0, dtype=torch.uint8)

    def open(self) -> None:
        """Form the transfer group. Raises SystemExit where it does not come about."""
        report = self._sender.open(self._members, TIMEOUT_S)
        if not report.is_whole:
            raise SystemExit(f"no transfer group: {report}")
        self._flat = torch.zeros(self._sender._engine.num_bytes, dtype=torch.uint8)

    def push(self) -> dict[str, float]:
        """Pause, transfer, load, resume: seconds of each."""
        self._num_pushes += 1
        started = time.perf_counter()
        self._on_all("pause?mode=keep&clear_cache=false")
        paused = time.perf_counter()
        report = self._sender.send(f"v0.{self._num_pushes}", f"push-{self._num_pushes}", TIMEOUT_S)
        sent = time.perf_counter()
        self._on_all("resume")
        ended = time.perf_counter()
        if not report.is_whole:
            raise SystemExit(f"a push failed: {report}")
        return {
            "seconds": report.seconds,
            "load_seconds": report.load_seconds,
            "pause_over_transfer_s": ended - started - report.seconds - report.load_seconds,
            "pausing": paused - started,
            "around": sent - paused - report.seconds - report.load_seconds,
            "resuming": ended - sent,
        }

    def bare(self) -> float:
        """Seconds of one flat broadcast to the same workers."""
        self._num_pushes += 1
        engine, push = self._sender._engine, str(self._num_pushes)
        deadline, ranks = Deadline(TIMEOUT_S), range(1, 1 + len(self._members))
        body = {"method": "bare_broadcast", "kwargs": {"num_bytes": self._flat.numel(), "push": push}}
        with ThreadPoolExecutor(1) as executor:
            received = executor.submit(self._on_all, "collective_rpc", body)
            engine._meeting.wait_for(ranks, deadline, f"bare-ready/{push}")
            started = time.perf_counter()
            flat_broadcast(engine._group, self._flat)
            engine._meeting.wait_for(ranks, deadline, f"bare-arrived/{push}")
            seconds = time.perf_counter() - started
            received.result()
        return seconds

    def close(self) -> None:
        """Leave the group."""
        self._sender.close()

    def _on_all(self, route: str, body: dict[str, Any] | None = None) -> None:
        def call(member: Member) -> None:
            reply = requests.post(f"{member.url}/{route}", json=body, headers=self._headers, timeout=TIMEOUT_S)
            reply.raise_for_status()

        with ThreadPoolExecutor(len(self._members)) as executor:
            list(executor.map(call, self._members))


def _boot_id(url: str) -> str:
    """What the replica calls itself; empty where it does not say."""
    return requests.get(f"{url}/health", timeout=10).headers.get("x-boot-id", "")


def summary(pushes: Sequence[dict[str, float]], bare: Sequence[float], num_bytes: int) -> dict[str, float]:
    """Medians over the rounds; GB are 10^9 bytes."""
    middle = {name: median(push[name] for push in pushes) for name in pushes[0]}
    return {
        "seconds": round(middle["seconds"], 4),
        "gb_per_s": round(num_bytes / 1e9 / middle["seconds"], 3),
        "ratio": round(median(bare) / middle["seconds"], 3),
        "load_seconds": round(middle["load_seconds"], 4),
        "pause_over_transfer_s": round(middle["pause_over_transfer_s"], 4),
    }


def measure(bench: Bench, rounds: int) -> dict[str, float]:
    """One number of receivers; prints each round."""
    bench.open()
    pushes, bare = [], []
    for index in range(rounds + 1):  # the first warms up
        pushes.append(bench.push())
        bare.append(bench.bare())
        parts = "  ".join(f"{name} {value:.4f}" for name, value in pushes[-1].items())
        print(f"{index}  {parts}  bare {bare[-1]:.4f}", flush=True)
    num_bytes = bench._flat.numel()
    bench.close()
    return summary(pushes[1:], bare[1:], num_bytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--receivers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--megabytes", type=int, default=256, help="of the model, 10^6 bytes; at least so many")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--bucket_mib", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1, help="of the sender's PyTorch")
    parser.add_argument("--verify", action="store_true", help="with checksums")
    args = parser.parse_args()
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_policy(folder / "policy", args.megabytes * 10**6)
        token = read_or_create_token(folder / "token")
        source = ZeroWeightSource(
            served_weights(policy_of(folder / "policy")), torch.bfloat16, args.bucket_mib * 2**20, is_sender=True
        )
        transfer = TransferSettings("gloo", ADDRESS, args.bucket_mib * 2**20, 2**30, args.verify)
        settings = replica_settings(folder, max(args.receivers))
        results = {}
        with running([replica_process(settings, i) for i in range(settings.replicas)], STARTUP_S) as urls:
            for num in args.receivers:
                print(f"{num} receivers", flush=True)
                results[str(num)] = measure(Bench(urls[:num], source, transfer, token), args.rounds)
    print(json.dumps({"receivers": results}))


if __name__ == "__main__":
    main()
