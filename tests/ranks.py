"""Learner ranks under real DeepSpeed for a test: a process each, outside of Ray and of the test's own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from trainer.batch import Sample
from wire.process import free_port

ROOT = Path(__file__).parents[1]
DEADLINE_S = 240.0


def run_ranks(module: str, folder: Path, world: int) -> None:
    """Run `python -m module rank world port folder` for each rank, to the end of all or of the first that fails."""
    port = str(free_port("127.0.0.1"))
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo"
    }  # fmt: skip
    logs = [folder / f"rank-{rank}-of-{world}.log" for rank in range(world)]
    ranks = []
    for rank, log in enumerate(logs):
        with log.open("wb") as file:
            arguments = [sys.executable, "-m", module, str(rank), str(world), port, str(folder)]
            ranks.append(subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=file, stderr=file))
    end = time.monotonic() + DEADLINE_S
    while any(process.poll() is None for process in ranks) and time.monotonic() < end:
        if any(process.returncode for process in ranks):
            break  # the others wait for it in a collective
        time.sleep(0.1)
    codes = [process.poll() for process in ranks]
    for process in ranks:
        process.kill()
        process.wait()
    assert codes == [0] * world, "\n".join(log.read_text()[-3000:] for log in logs)


def run_rank(findings: Callable[..., dict[str, Any]]) -> None:
    """What such a process does: `findings(folder, samples, stage, rank, world, port)` at ZeRO stages 2 and 3.

    The samples are read from the folder's samples.json, and what rank 0 found is saved as world-WORLD.pt.
    """
    rank, world, port = map(int, sys.argv[1:4])
    folder = Path(sys.argv[4])
    torch.set_num_threads(1)
    rows = json.loads((folder / "samples.json").read_text())
    samples = [Sample(*map(tuple, row[:3]), row[3]) for row in rows]
    results = {stage: findings(folder, samples, stage, rank, world, port) for stage in (2, 3)}
    if rank == 0:
        torch.save(results, folder / f"world-{world}.pt")
    leave()


def leave() -> NoReturn:
    """Leave the group with the other ranks, and the process at once.

    DeepSpeed keeps gloo's groups alive. A thread of theirs that frees the last collective while the interpreter ends
    asks for its lock, is ended there, and takes the process down with SIGABRT.
    """
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)
