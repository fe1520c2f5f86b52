"""After a push, what a replica says of given tokens is what the learner's own model says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import ROOT, Program
from wire.process import free_port

# Tolerances, in nats: for any one token, and for the mean over all tokens.
#
# fp32 on both sides: two orders of the same sums. A log-prob near -20 has a spacing of 2e-6, two layers add a few of
# them; a wrong weight shows as 0.1 and more.
FP32 = (2e-5, 1e-5)
# bf16 keeps 8 bits: a logit between 16 and 32 has a spacing of 0.125, one between 8 and 16 of 0.0625. Both sides round
# hidden states and logits, each at its own places, so one token can be two such steps apart; the mean, over roundings
# in both directions, stays well below one.
BF16 = (0.25, 0.04)


@dataclass(frozen=True)
class Servers:
    """URLs of running replicas: two of one worker each, one split over two workers, one that serves bf16."""

    pair: list[str]
    split: list[str]
    bf16: list[str]


@pytest.fixture(scope="module")
def servers(start: Callable[..., Program]) -> Iterator[Servers]:
    """Four replicas, as three fleets; they end with this module, for each takes about 3 GiB."""
    ports = [str(free_port("127.0.0.1")) for _ in range(4)]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    split = ("--rollout_tensor_parallel_size", "2")
    programs = [
        start("rollout_server.main", "--replicas", "2", "--rollout_ports", *ports[:2], name="pair"),
        start("rollout_server.main", "--replicas", "1", "--rollout_ports", ports[2], *split, name="split"),
        start(
            *("rollout_server.main", "--replicas", "1", "--rollout_ports", ports[3], "--rollout_dtype", "bfloat16"),
            name="bf16",
        ),
    ]
    for program, count in zip(programs, (2, 1, 1), strict=True):
        program.wait_for("replica-", times=count)
    yield Servers(urls[:2], urls[2:3], urls[3:])
    for program in programs:
        program.stop()


def push(folder: Path, token_file: Path, fleets: list[list[str]], **case: Any) -> list[dict[str, Any]]:
    """Run the learner of `case` in a process of its own: for each fleet a push, a step and another push."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    arguments = {"fleets": fleets, "token_file": str(token_file), "output_dir": str(folder)} | case
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
    findings: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return findings


def check(found: dict[str, Any], urls: list[str], tolerances: tuple[float, float]) -> None:
    """The replicas hold the last version, the step moved the log-probs, and both sides agree on where to."""
    for_one, for_mean = tolerances
    assert found["versions"] == [found["pushed"]] * len(urls)
    assert found["num_tokens"] >= 100
    assert found["mean_change"] > max(0.05, 3 * for_mean), "equality of what did not change shows nothing"
    assert found["largest_difference"].keys() == set(urls)
    assert max(found["largest_difference"].values()) < for_one, found
    assert found["mean_difference"] < for_mean, found


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("stage", [2, 3])
def test_after_a_push_each_replicas_logprobs_equal_the_learners(
    servers: Servers, folder: Path, token_file: Path, stage: int, ranks: int
) -> None:
    # Two replicas, then one of them alone, then one that is split over two workers: each time a new transfer group.
    fleets = [servers.pair, servers.pair[1:], servers.split]
    found = push(folder, token_file, fleets, stage=stage, ranks=ranks, dtype="float32")
    for findings, urls in zip(found, fleets, strict=True):
        check(findings, urls, FP32)


@pytest.mark.parametrize(("stage", "ranks"), [(2, 1), (3, 2)])
def test_the_same_holds_in_bf16(servers: Servers, folder: Path, token_file: Path, stage: int, ranks: int) -> None:
    (found,) = push(folder, token_file, [servers.bf16], stage=stage, ranks=ranks, dtype="bfloat16")
    check(found, servers.bf16, BF16)
