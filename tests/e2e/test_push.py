"""After a push, what a replica says of given tokens is what the learner's own model says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import ROOT, Program
from wire.process import free_port

# fp32 on both sides: two implementations of the same sums. Log-probs near -7 have a spacing of 5e-7, a model of two
# layers adds a few of them; a wrong weight shows as 0.1 and more.
FP32_TOLERANCE = 2e-5
# bf16 keeps 8 bits of a number: hidden states differ by 2^-8 of themselves after each rounding, which the two
# implementations place differently, and the log-probs by a few of that.
BF16_TOLERANCE = 0.06


@dataclass(frozen=True)
class Servers:
    """URLs of running replicas: two of one worker each, one split over two, one that serves bf16."""

    pair: tuple[str, str]
    split: str
    bf16: str


@pytest.fixture(scope="module")
def servers(start: Callable[..., Program]) -> Servers:
    """Four replicas, as three fleets."""
    ports = [free_port("127.0.0.1") for _ in range(4)]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    flags = ("--rollout_ports", *map(str, ports[:2]))
    programs = [
        start("rollout_server.main", "--replicas", "2", *flags, name="pair"),
        start(
            "rollout_server.main",
            *("--replicas", "1", "--rollout_ports", str(ports[2]), "--rollout_tensor_parallel_size", "2"),
            name="split",
        ),
        start(
            "rollout_server.main",
            *("--replicas", "1", "--rollout_ports", str(ports[3]), "--rollout_dtype", "bfloat16"),
            name="bf16",
        ),
    ]
    for program, count in zip(programs, (2, 1, 1), strict=True):
        program.wait_for("replica-", times=count)
    return Servers((urls[0], urls[1]), urls[2], urls[3])


def push(folder: Path, token_file: Path, urls: list[str], **case: Any) -> dict[str, Any]:
    """Run the learner of `case` in a process of its own: one push, one step, one more push; its findings."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    arguments = {"urls": urls, "token_file": str(token_file), "output_dir": str(folder)} | case
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.push_case", json.dumps(arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    findings: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return findings


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("fleet", ["pair", "split"])
def test_after_a_push_each_replicas_logprobs_equal_the_learners(
    servers: Servers, folder: Path, token_file: Path, stage: int, ranks: int, fleet: str
) -> None:
    # One replica, two replicas and a split one, each with both ZeRO stages and both numbers of ranks.
    urls = [servers.split] if fleet == "split" else list(servers.pair[: 2 if ranks == 1 else 1])
    found = push(folder, token_file, urls, stage=stage, ranks=ranks, dtype="float32")
    assert found["versions"] == ["0.1"] * len(urls)
    assert found["num_tokens"] >= 100
    assert found["largest_change"] > 0.05, "the step must move the log-probs, or equality shows nothing"
    for url, difference in found["largest_difference"].items():
        assert difference < FP32_TOLERANCE, url


@pytest.mark.parametrize(("stage", "ranks"), [(2, 1), (3, 2)])
def test_the_same_holds_in_bf16(servers: Servers, folder: Path, token_file: Path, stage: int, ranks: int) -> None:
    found = push(folder, token_file, [servers.bf16], stage=stage, ranks=ranks, dtype="bfloat16")
    assert found["versions"] == ["0.1"]
    assert found["largest_change"] > 2 * BF16_TOLERANCE
    assert found["largest_difference"][servers.bf16] < BF16_TOLERANCE
