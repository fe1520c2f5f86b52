"""A driver is killed over a cluster that lives on: the next one takes its servers over, or they end by themselves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.e2e.conftest import ROOT, START_S, Program
from wire.process import free_port

SHORT = ("--total_episodes", "384", "--num_eval_prompts", "8", "--eval_steps", "0", "--save_steps", "2")
NODE = {"learner": 1, "rollout": 2, "reward": 1}
NO_RAY_TOKEN = {"RAY_AUTH_MODE": "disabled"}  # else `ray start` asks for that of who runs the tests, where there is one
ENDS_S = 60.0  # what servers and their hosts may take to end


class Head:
    """A Ray cluster of one node, started by hand: it outlives whoever joins it."""

    def __init__(self, process: psutil.Process, address: str) -> None:
        self._process, self.address = process, address

    def servers(self) -> dict[str, list[int]]:
        """Process ids of the servers on it, by what they are."""
        found: dict[str, list[int]] = {"replica": [], "reward service": [], "judge": [], "host": []}
        for process in self._process.children(recursive=True):
            try:
                command = process.cmdline()
            except psutil.Error:  # it has ended meanwhile
                continue
            if "wire.leash" in command:  # about to become a server
                continue
            if command and command[0].startswith(("ray::ReplicaHost", "ray::RewardHost")):
                found["host"].append(process.pid)
            elif "reward_server.main" in command:
                found["reward service"].append(process.pid)
            elif "vllm.entrypoints.openai.api_server" in command:
                found["replica" if "--weight-transfer-config" in command else "judge"].append(process.pid)
        return {kind: sorted(pids) for kind, pids in found.items()}

    def wait_until_nobody_serves(self, deadline_s: float = ENDS_S) -> None:
        end = time.monotonic() + deadline_s
        while any(found := self.servers().values()):
            assert time.monotonic() < end, f"left after {deadline_s:.0f} s: {found}"
            time.sleep(0.2)


@contextmanager
def ray_head() -> Iterator[Head]:
    folder = tempfile.mkdtemp(prefix="rlhf-ray-", dir="/tmp")  # Ray's sockets need a short path
    port = free_port("127.0.0.1")
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats"]
    command += ["--node-ip-address", "127.0.0.1", "--port", str(port), "--temp-dir", folder, "--num-cpus", "4"]
    command += ["--ray-client-server-port", str(free_port("127.0.0.1")), "--include-dashboard", "false"]
    command += ["--object-store-memory", str(80 * 2**20), "--resources", json.dumps(NODE)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_worker_niceness": "0"} | NO_RAY_TOKEN
    with (Path(folder) / "head.out").open("wb") as log:
        head = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield Head(psutil.Process(head.pid), f"127.0.0.1:{port}")
    finally:
        processes = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
        head.terminate()
        for process in psutil.wait_procs(processes, 3)[1]:
            process.kill()
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def head(folder: Path) -> Iterator[Head]:
    with ray_head() as head:
        yield head


@pytest.fixture
def life(start: Callable[..., Program], head: Head, folder: Path) -> Callable[..., Program]:
    """Starts a driver in the cluster."""

    def start_driver(name: str, run: str, *flags: str) -> Program:
        flags = (*SHORT, "--ray_address", head.address, "--output_dir", str(folder / run), *flags)
        return start("trainer.main", *flags, name=name, env=NO_RAY_TOKEN)

    return start_driver


def test_a_driver_that_was_killed_finds_its_servers_and_the_run_goes_on(
    life: Callable[..., Program], head: Head, folder: Path
) -> None:
    first = life("first-life", "adopted")
    first.wait_for("step 3/6")
    before = head.servers()
    assert [len(before[kind]) for kind in ("replica", "reward service", "judge", "host")] == [2, 1, 1, 3], before
    first.process.kill()
    first.process.wait()

    second = life("second-life", "adopted", "--resume_from_checkpoint", "latest")
    second.wait_for("step 5/6")
    assert head.servers() == before
    assert second.process.wait(START_S) == 0, second.text()[-3000:]
    told = second.text()
    assert told.count("left by a dead driver, and taken over: ") == told.count("adopted: http") == 3, told
    assert "ready: http" not in told and "resumed from" in told, told
    summary = json.loads((folder / "adopted" / "summary.json").read_text())
    assert (summary["adopted_replicas"], summary["adopted_reward_service"]) == (2, True)
    assert (summary["steps"], len(set(summary["replica_versions"]))) == (6, 1)
    audited = subprocess.run(
        [sys.executable, "-m", "trainer.audit", str(folder / "adopted")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert audited.returncode == 0, audited.stdout + audited.stderr
    head.wait_until_nobody_serves(5.0)


def test_servers_that_nobody_comes_back_for_end_by_themselves(life: Callable[..., Program], head: Head) -> None:
    driver = life("only-life", "orphaned", "--replicas", "1", "--orphan_timeout_s", "15")
    end = time.monotonic() + START_S
    while not (head.servers()["replica"] and head.servers()["judge"]):  # they start: nobody will have waited for them
        assert driver.process.poll() is None and time.monotonic() < end, driver.text()
        time.sleep(0.2)
    driver.process.kill()
    driver.process.wait()
    killed = time.monotonic()
    time.sleep(7.0)
    assert all(head.servers().values()), head.servers()
    head.wait_until_nobody_serves()
    assert time.monotonic() - killed > 10.0  # the last that was heard of it is at most a renewal old
