"""A run is a job of a real Ray cluster: the same command, by `ray job submit`; its log, its exit status, its end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT
from trainer.supervisor import RUN_ENV, end_processes, processes_of
from wire.process import free_port

RAY = str(Path(sys.executable).parent / "ray")
MARK = f"job-test-{os.getpid()}"


@dataclass
class Head:
    """A Ray node with its dashboard, where jobs go."""

    url: str
    environment: dict[str, str]

    def ray(self, *words: str, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        command = [RAY, "job", *words, "--address", self.url]
        if "--" in words:  # what follows is the job's own
            at = words.index("--")
            command = [RAY, "job", *words[:at], "--address", self.url, *words[at:]]
        return subprocess.run(
            command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def submit(self, job: str, *flags: str, here: bool = True, wait: bool = True) -> subprocess.CompletedProcess[str]:
        """A run as a job: in this folder, or in the copy of it that Ray takes to the head."""
        run = [sys.executable, "-m", "trainer.main", "--config", "configs/toy.yaml", *flags]
        words = ["submit", "--submission-id", job, *([] if wait else ["--no-wait"])]
        if here:
            return self.ray(*words, "--", "bash", "-c", f"cd {ROOT} && exec {' '.join(run)}")
        copied = ["--working-dir", ".", "--runtime-env-json", '{"excludes": [".venv", ".git"]}']
        return self.ray(*words, *copied, "--", *run)

    def until(self, what: str, is_so: Callable[[], bool], deadline_s: float = 90.0) -> None:
        end = time.monotonic() + deadline_s
        while not is_so():
            assert time.monotonic() < end, f"not within {deadline_s} s: {what}"
            time.sleep(0.5)


@pytest.fixture(scope="module")
def head(folder: Path) -> Iterator[Head]:
    """One node with the resources of a run. It carries a mark by which all that it starts is ended with it."""
    port, dashboard = free_port("127.0.0.1"), free_port("127.0.0.1")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_JOB_STOP_WAIT_TIME_S": "60", RUN_ENV: MARK, "SPT_NOENV": "1"}
    environment["RAY_AUTH_MODE"] = "disabled"  # else `ray start` asks for the token of who runs the tests
    started = [RAY, "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}"]
    started += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--include-dashboard=true", "--num-cpus=2"]
    started += ['--resources={"learner": 1, "rollout": 1, "reward": 1}', "--object-store-memory=80000000"]
    for name in ("dashboard-agent-listen-port", "ray-client-server-port"):  # other heads may be on this machine
        started.append(f"--{name}={free_port('127.0.0.1')}")
    started += ["--min-worker-port=0", "--max-worker-port=0"]
    started += [f"--temp-dir=/tmp/ray-{MARK}", "--disable-usage-stats"]  # a Unix socket's path must be short
    with (folder / "head.out").open("wb") as log:
        process = subprocess.Popen(started, env=environment, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
    found = Head(f"http://127.0.0.1:{dashboard}", environment)
    try:
        found.until("the dashboard answers", lambda: found.ray("list").returncode == 0)
        yield found
    finally:
        end_processes(MARK)  # `ray start` itself would wait for half a minute
        process.wait(10)
        subprocess.run(["rm", "-rf", f"/tmp/ray-{MARK}"], check=True)


def test_the_same_command_is_a_job_whose_log_is_lines_and_whose_status_is_its_exit_code(
    head: Head, folder: Path
) -> None:
    simulated = ("--simulate", "configs/rates/toy.yaml", "--simulate_steps", "3")
    done = head.submit("job-simulated", *simulated, "--output_dir", str(folder / "job-simulated"), here=False)
    assert done.returncode == 0, done.stdout + done.stderr
    log = head.ray("logs", "job-simulated").stdout
    assert "summary and trace: " in log and "\r" not in log
    assert "succeeded" in head.ray("status", "job-simulated").stdout
    wrong = head.submit("job-wrong", "--rloo_k", "1")
    assert wrong.returncode != 0 and "failed" in head.ray("status", "job-wrong").stdout
    assert "error: rloo_k" in head.ray("logs", "job-wrong").stdout


def test_a_job_that_is_stopped_takes_down_all_that_its_run_has_started(
    head: Head, folder: Path, token_file: Path
) -> None:
    output = folder / "job-stopped"
    flags = ["--ray_address", "auto", "--output_dir", str(output), "--token_file", str(token_file)]
    before = set(processes_of(MARK))
    assert head.submit("job-stopped", *flags, "--replicas", "1", wait=False).returncode == 0
    logs = [output / "logs" / name for name in ("replica-0.log", "judge-0.log", "reward.log")]
    head.until("replica and judge are being started", lambda: all(path.exists() for path in logs))
    servers = {pid for pid in processes_of(MARK) if b"vllm.entrypoints" in _command(pid)}
    assert servers
    assert head.ray("stop", "job-stopped").returncode == 0
    assert "stopped" in head.ray("status", "job-stopped").stdout
    log = head.ray("logs", "job-stopped").stdout
    assert "stopped" in log.splitlines() and "\r" not in log
    head.until("the servers are gone", lambda: not servers & set(processes_of(MARK)), 30)
    left = [_command(pid) for pid in set(processes_of(MARK)) - before]
    assert not [
        command for command in left if b"vllm" in command or b"trainer" in command or b"reward_server" in command
    ]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
    except OSError:
        return b""
