"""A push over real Gloo to replicas in processes of their own, and what becomes of it when one fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.rollout_server.transfer_worker import BOOT_ID, fingerprint
from trainer.lora import served_weights
from trainer.publish import TransferSettings, WeightSender, ZeroWeightSource
from wire.membership import Member, Outcome, TransferReport
from wire.process import free_port

ROOT = Path(__file__).parents[2]
NUM_TENSORS, ROWS = 12, 512  # 12 MiB in fp32, in 12 buckets: more than the sockets between two processes hold
TIMEOUT_S = 4.0
GRACE_S = 0.5


class Replicas:
    """Processes that serve one test after the other; only those that died or froze are started anew."""

    def __init__(self) -> None:
        self.environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "GLOO_SOCKET_IFNAME": "lo",
            "PYTHONWARNINGS": "ignore",
        }
        self.running: list[tuple[int, subprocess.Popen[str]]] = []

    def take(self, troubles: Sequence[str]) -> list[tuple[int, subprocess.Popen[str]]]:
        """As many as there are troubles, each with its own."""
        self.end([pair for pair in self.running if not self.set_trouble(pair, "well")])
        new = [self.start() for _ in range(len(troubles) - len(self.running))]
        for _, process in new:
            assert process.stdout is not None and "ready" in process.stdout.readline()
        self.running += new
        taken = self.running[: len(troubles)]
        assert all(self.set_trouble(pair, trouble) for pair, trouble in zip(taken, troubles, strict=True))
        return taken

    def start(self) -> tuple[int, subprocess.Popen[str]]:
        """One more, not yet waited for."""
        port = free_port("127.0.0.1")
        command = [sys.executable, "-m", "tests.rollout_server.transfer_worker", str(port)]
        return port, subprocess.Popen(
            command, cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    @staticmethod
    def set_trouble(pair: tuple[int, subprocess.Popen[str]], trouble: str) -> bool:
        """Whether it lives and has taken it."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{pair[0]}/{trouble}", timeout=2) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    def end(self, pairs: Sequence[tuple[int, subprocess.Popen[str]]]) -> None:
        """End these."""
        for _, process in pairs:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        self.running = [pair for pair in self.running if pair not in pairs]


class Fleet:
    """Replicas and a sender; `troubles` has one entry a replica."""

    def __init__(self, replicas: Replicas, *troubles: str, staging_mib: int = 1024, verify: bool = False) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(*(nn.Linear(ROWS, ROWS, bias=False) for _ in range(NUM_TENSORS)))
        taken = replicas.take(troubles)
        self.processes = [process for _, process in taken]
        self.members = [Member(f"http://127.0.0.1:{port}", 1, BOOT_ID) for port, _ in taken]
        self.source = ZeroWeightSource(served_weights(self.model), torch.float32, 2**20, is_sender=True)
        settings = TransferSettings("gloo", "127.0.0.1", 2**20, staging_mib * 2**20, verify)
        self.sender = WeightSender(settings, self.source, "token")

    def push(self, version: str = "v0.1", timeout_s: float = TIMEOUT_S) -> TransferReport:
        """Send, and see that it came back in time."""
        started = time.monotonic()
        report = self.sender.send(version, f"push-{version}", timeout_s)
        assert time.monotonic() - started < timeout_s + GRACE_S
        return report

    def open(self, *indices: int, timeout_s: float = TIMEOUT_S) -> TransferReport:
        """Form the group over some of the replicas; all by default."""
        started = time.monotonic()
        report = self.sender.open([self.members[i] for i in indices] or self.members, timeout_s)
        assert time.monotonic() - started < timeout_s + GRACE_S
        return report

    def state(self, index: int) -> dict[str, Any]:
        """What a replica says of itself."""
        with urllib.request.urlopen(f"{self.members[index].url}/state", timeout=5) as reply:
            return dict(json.load(reply))

    def expected(self) -> list[str]:
        """Fingerprints of the sender's weights."""
        return [fingerprint(name, tensor.detach()) for name, tensor in self.model.named_parameters()]

    def outcomes(self, report: TransferReport) -> list[Outcome | None]:
        """In the replicas' order."""
        return [report.outcomes.get(member.url) for member in self.members]


@pytest.fixture(scope="module")
def replicas() -> Iterator[Replicas]:
    """The module's replicas."""
    made = Replicas()
    yield made
    made.end(list(made.running))


@pytest.fixture
def fleet(replicas: Replicas, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Fleet]]:
    """Makes a fleet whose group ends with the test."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    made: list[Fleet] = []

    def make(*troubles: str, **settings: Any) -> Fleet:
        made.append(Fleet(replicas, *troubles, **settings))
        return made[-1]

    yield make
    for each in made:
        each.sender.close()


DONE, FAILED, GONE, SILENT = Outcome.DONE, Outcome.FAILED, Outcome.GONE, Outcome.SILENT


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("staging_mib", [1024, 3])
def test_a_push_arrives_bit_by_bit_in_one_piece_or_in_many_and_so_does_the_next(
    fleet: Callable[..., Fleet], staging_mib: int, verify: bool
) -> None:
    three = fleet("well", "well", "well", staging_mib=staging_mib, verify=verify)
    assert three.open().is_whole
    for version in ("v0.1", "v0.2"):
        report = three.push(version, timeout_s=30.0)
        assert report.is_whole and report.outcomes.keys() == {member.url for member in three.members}
        assert report.num_bytes >= NUM_TENSORS * ROWS * ROWS * 4 and 0 < report.seconds < 30.0
        for index in range(3):
            state = three.state(index)
            assert state["loaded"] == three.expected() and state["version"] == version
        with torch.no_grad():
            three.model[0].weight += 1
    steps = ["start_weight_update", "update_weights", "finish_weight_update"]
    assert three.state(0)["headers"] == [
        ["init_weight_transfer_engine", BOOT_ID, ""],
        *([step, BOOT_ID, f"push-{version}"] for version in ("v0.1", "v0.2") for step in steps),
    ]


@pytest.mark.parametrize("staging_mib", [1024, 3])
def test_a_replica_that_dies_in_mid_transfer_is_gone_and_the_others_are_told_at_once(
    fleet: Callable[..., Fleet], staging_mib: int
) -> None:
    three = fleet("well", "kill", "well", staging_mib=staging_mib)
    assert three.open().is_whole
    started = time.monotonic()
    report = three.push(timeout_s=30.0)
    assert time.monotonic() - started < 3.0  # of 30
    assert three.outcomes(report)[1] is GONE and report.error and not report.is_whole
    assert set(three.outcomes(report)) <= {DONE, FAILED, GONE}  # one that had everything by then has it
    assert three.open(0, 2).is_whole
    assert three.push("v0.2").is_whole
    for index in (0, 2):
        assert three.state(index)["loaded"][-NUM_TENSORS:] == three.expected()


def test_a_replica_that_freezes_is_silent_and_the_others_answer_before_the_deadline(
    fleet: Callable[..., Fleet],
) -> None:
    three = fleet("well", "well", "freeze")
    assert three.open().is_whole
    report = three.push()
    assert three.outcomes(report)[2] is SILENT and report.error
    assert set(three.outcomes(report)[:2]) <= {DONE, FAILED}
    assert three.open(0, 1).is_whole and three.push("v0.2").is_whole
    assert three.state(0)["loaded"] == three.state(1)["loaded"] == three.expected()


def test_the_only_replica_freezes_and_the_sender_is_back_in_time(fleet: Callable[..., Fleet]) -> None:
    one = fleet("freeze")
    assert one.open().is_whole
    assert one.outcomes(one.push()) == [SILENT]


@pytest.mark.parametrize("trouble", ["refuse", "load", "damage"])
def test_a_replica_that_answers_with_an_error_has_failed_and_fails_the_push_early(
    fleet: Callable[..., Fleet], trouble: str
) -> None:
    two = fleet("well", trouble, verify=True)
    assert two.open().is_whole
    started = time.monotonic()
    report = two.push(timeout_s=30.0)
    assert time.monotonic() - started < 3.0
    assert two.outcomes(report)[1] is FAILED and two.outcomes(report)[0] in (DONE, FAILED)
    problem = report.problems[two.members[1].url]
    assert "HTTP 500" in problem
    if trouble == "damage":
        assert "bucket 0 (0.weight to 0.weight) arrived damaged" in problem
    assert two.open(0).is_whole and two.push("v0.2").is_whole and two.state(0)["loaded"] == two.expected()


def test_a_replica_that_dies_while_the_group_forms_fails_the_opening_early(fleet: Callable[..., Fleet]) -> None:
    three = fleet("well", "kill-joining", "well")
    started = time.monotonic()
    report = three.open(timeout_s=30.0)
    assert time.monotonic() - started < 3.0
    assert three.outcomes(report) == [FAILED, GONE, FAILED] and report.error
    assert three.outcomes(three.push()) == [FAILED] * 3  # nothing was asked of them: there is no group
    assert three.open(0, 2).is_whole and three.push("v0.2").is_whole
    assert three.state(0)["loaded"] == three.state(2)["loaded"] == three.expected()


def test_a_replica_that_is_frozen_when_the_group_forms_is_silent(fleet: Callable[..., Fleet]) -> None:
    two = fleet("well", "well")
    two.processes[1].send_signal(signal.SIGSTOP)
    report = two.open(timeout_s=2.0)
    assert two.outcomes(report) == [FAILED, SILENT] and report.error
    assert two.open(0).is_whole and two.push().is_whole


def test_a_replica_that_is_not_there_is_gone_and_named(fleet: Callable[..., Fleet]) -> None:
    two = fleet("well", "well")
    two.processes[1].kill()
    two.processes[1].wait()
    report = two.open(timeout_s=30.0)
    assert two.outcomes(report) == [FAILED, GONE]
    assert two.members[1].url in report.problems[two.members[1].url]


def test_a_source_that_is_not_what_it_announces_raises_and_leaves_no_pass_half_done(
    fleet: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = fleet("well")
    metadata = one.source.metadata()
    monkeypatch.setattr(one.source, "metadata", lambda: metadata[::-1])
    assert one.open().is_whole
    with pytest.raises(ValueError, match=r"the source yields 0.weight .* where it announced"):
        one.push()
    assert not one.source._left
